"""Choice of a logged model in MLflow."""
