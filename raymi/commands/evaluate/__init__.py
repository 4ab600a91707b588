"""Evaluation of a run, a logged model or a weights file."""
