"""The parts of `benches/proxy.py`; see `benches/README.md`."""
