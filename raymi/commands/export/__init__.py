"""Command `raymi.export`: options and run."""
