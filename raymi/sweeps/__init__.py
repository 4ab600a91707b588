"""Searches for settings: spaces, trials, and what they find."""
