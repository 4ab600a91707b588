"""Paired comparisons of variants of a recipe: plan, processes, numbers, report."""
