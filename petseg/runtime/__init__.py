"""The process and its devices: start-up, memory, strategies, clusters."""
