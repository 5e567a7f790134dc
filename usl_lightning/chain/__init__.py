"""Several stages in order, as one run."""
