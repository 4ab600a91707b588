"""Bodies of the commands: options, plans and runs, called by the entry points."""
