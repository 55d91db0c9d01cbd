"""Where accesses come from: every source becomes a stream of `keyheat.model.Access`."""
