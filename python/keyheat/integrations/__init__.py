"""keyheat inside other frameworks."""
