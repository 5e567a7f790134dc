"""Several selectors on the same features."""
