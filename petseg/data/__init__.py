"""Examples in host memory, and the batches cut from them."""
