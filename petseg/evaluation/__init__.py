"""The pass over a split that counts every example once, and what follows from the counts."""
