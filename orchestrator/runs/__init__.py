"""The run folder, which is the state: files, results, lease, models."""
