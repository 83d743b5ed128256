"""From a spec to points, trials, forecasts and budgets. Pure."""
