"""Benchmarks of `python -m raymi.bench`: step cost, crafting, scaling over workers, memory."""
