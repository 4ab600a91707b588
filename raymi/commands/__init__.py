"""Bodies of the commands, called by the entry points: options, plans and runs."""
