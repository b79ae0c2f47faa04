"""MLflow, a view of the files that runs write."""
