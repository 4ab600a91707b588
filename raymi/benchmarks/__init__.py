"""What `python -m raymi.bench` measures: step cost, crafting, scaling over workers, memory."""
