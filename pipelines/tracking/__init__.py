"""MLflow, a view of what the runs wrote."""
