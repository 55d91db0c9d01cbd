"""The cases of `benches/client.py`."""
