"""Which of several measured classifiers is the one to use: questions, constraints, ranking. Without
MLflow."""
