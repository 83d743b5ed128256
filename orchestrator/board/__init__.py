"""What a run's results say: table, views, estimates, effects, verdict. Pure."""
