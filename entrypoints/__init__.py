"""The ways in: the only layer that knows all the others."""
