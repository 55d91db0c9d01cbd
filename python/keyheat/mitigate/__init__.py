"""What is done about a hot key; each remedy works alone, without detection and without the others."""
