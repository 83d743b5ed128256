"""What the results of a run mean: table, views, estimates, effects, verdict. Pure."""
