"""What a server allows, and which of keyheat's features that leaves."""
