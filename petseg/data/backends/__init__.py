"""Where decoded examples are kept: in memory, in files, or nowhere (decoded on demand)."""
