"""Training attack, norm balls, and the catalogue of evaluation attacks."""
