"""Applications that use keyheat; each says at its head how to run it."""
