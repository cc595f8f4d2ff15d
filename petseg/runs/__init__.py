"""A run in its work directory: the outer loop, checkpoints, where it starts from, how it is scored."""
