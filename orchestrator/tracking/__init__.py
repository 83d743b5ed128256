"""What TensorBoard and MLflow show of a run."""
