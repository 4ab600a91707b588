"""Command `raymi.bench`: options and terminal output."""
