"""Folders of runs: the typed files in them, and the record of a run."""
