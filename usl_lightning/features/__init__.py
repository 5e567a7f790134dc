"""What is computed of all images once, and kept."""
