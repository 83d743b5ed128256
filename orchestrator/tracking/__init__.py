"""What TensorBoard and MLflow get of a run."""
