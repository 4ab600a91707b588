"""Search of settings: spaces, studies, trials; without Ray."""
