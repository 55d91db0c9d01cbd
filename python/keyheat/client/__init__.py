"""The protected client."""
