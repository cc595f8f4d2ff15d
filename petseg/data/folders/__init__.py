"""Folders of pictures and masks, and how they become a TFDS data set."""
