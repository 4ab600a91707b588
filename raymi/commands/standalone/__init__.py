"""Command `raymi.standalone`: options and run."""
