"""HTML report over runs."""
