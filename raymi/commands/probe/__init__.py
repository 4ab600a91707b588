"""Command `raymi.probe`: options and run."""
