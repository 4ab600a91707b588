"""Selection of one classifier among evaluated ones: protocols, constraints, ranking."""
