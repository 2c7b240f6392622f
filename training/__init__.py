"""Scripts that teach her, each readable from top to bottom."""
