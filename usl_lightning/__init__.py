"""Learn features without labels, pick the images worth labelling, train from few labels and the rest."""

__version__ = "0.1.0"
