"""A run in its work directory: outer loop, checkpoints, initial weights, scoring."""
