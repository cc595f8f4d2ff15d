"""Data sets made of folders of images and masks, converted to TFDS data sets."""
