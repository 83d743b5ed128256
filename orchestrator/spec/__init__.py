"""What a user writes: sections, axes, reading it, the source of a model. Pure."""
