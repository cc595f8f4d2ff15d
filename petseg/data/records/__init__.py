"""Single records of TFDS data sets, by position."""
