"""Search of settings: options, run and final evaluation."""
