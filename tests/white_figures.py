"""Figures that are made but not drawn: drawing is a quarter of a tiny training."""

import numpy as np

from petseg.reporting import pictures

draw = pictures.to_array


def to_array(figure):
    """A white picture of the size of a figure, in place of `pictures.to_array`."""
    width, height = (round(100 * inches) for inches in figure.get_size_inches())
    return np.full((height, width, 3), 255, np.uint8)
