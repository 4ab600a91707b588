"""Search over a space of settings."""
