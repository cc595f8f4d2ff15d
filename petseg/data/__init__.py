"""Data sets, their examples, and the batches cut from them."""
