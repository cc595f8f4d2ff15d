"""The training step and its parts; independent of files, TensorBoard and checkpoints."""
