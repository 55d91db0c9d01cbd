"""Play a recorded trace as real commands through a real client."""
