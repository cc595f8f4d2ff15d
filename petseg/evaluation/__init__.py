"""Evaluation of a split: counts every example once, and derives all scores from the counts."""
