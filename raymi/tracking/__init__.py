"""MLflow: runs, models, registry and delivery; only this folder imports it."""
