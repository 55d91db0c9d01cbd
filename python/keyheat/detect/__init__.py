"""When a key is hot: the rules. The counting and judging itself is native."""
