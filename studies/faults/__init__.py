"""Faults that raymi must survive: kills, damaged files and malformed inputs."""
