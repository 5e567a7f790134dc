"""Networks: backbones, encoders that carry their normalisation, heads, and moving averages of them."""
