"""Phases, training step, loop, validation and probes of one worker."""
