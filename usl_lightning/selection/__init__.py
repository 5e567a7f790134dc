"""Stage 2: choosing what to label. One file a method."""
