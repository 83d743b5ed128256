"""Train every point of a hyperparameter grid exactly once, anywhere, and rank them."""

__version__ = "0.1.0"
