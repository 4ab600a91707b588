"""Distributed natural-adversarial mutual-information training of robust classifiers."""

__version__ = "0.1.0"
