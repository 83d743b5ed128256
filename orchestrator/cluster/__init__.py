"""Trials -> results over a Ray cluster. The only wing that imports Ray."""
