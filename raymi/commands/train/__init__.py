"""Command `raymi.train`: options, run and terminal output."""
