"""The process and its devices: start, memory, strategies, clusters."""
