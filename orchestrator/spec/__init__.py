"""What a user writes: sections and axes, how a spec is read, and the source of a model. Pure."""
