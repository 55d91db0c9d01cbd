"""A flash sale on three local primaries, played without and with keyheat."""
