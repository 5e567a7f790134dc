"""Arithmetic on feature matrices, which knows no image."""
