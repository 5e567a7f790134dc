"""Stage 1: features without labels. One file a method."""
