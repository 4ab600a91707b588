"""Selection of a logged model in MLflow."""
