"""Run folders: typed files, journal, checkpoints, and the record of a run."""
