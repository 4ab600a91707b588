"""Comparison of recipes over seeds."""
