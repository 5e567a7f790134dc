"""Stage 3: a classifier from few labels and many images. One file a method."""
