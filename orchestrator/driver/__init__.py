"""What the grid command does, from the spec to the report."""
