"""Mutual information: estimators, bounds, objectives (Eq. 4-9) and the terms of a step."""
