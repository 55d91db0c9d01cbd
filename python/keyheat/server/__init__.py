"""Redis and Valkey servers as children of this process: for `keyheat up`, the demo and the tests."""
