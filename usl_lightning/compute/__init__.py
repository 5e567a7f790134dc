"""What a training step may call: processes, optimizers, precision."""
