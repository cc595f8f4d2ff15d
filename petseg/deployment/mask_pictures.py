"""Predicted masks as pictures: of class ids, or of the values and colours of the data set. Imports no TensorFlow."""

import numpy as np
from PIL import Image

from petseg.classes import IGNORED, Classes
from petseg.config.eval_config import MASK_VALUES
from petseg.errors import ConfigError


def mask_picture(ids: np.ndarray, classes: Classes, mask_values: str = "ids") -> Image.Image:
    """A mask as a picture, to be saved as PNG.

    Args:
      mask_values: `ids`: class ids with the colours of the classes as a palette. `own`: as the data set's masks, so
        that they can be trained on together: values in 8 bits of grey, in 16 if one is above 255, or colours. A class
        with several values has its first one.

    Raises:
      ConfigError: if `mask_values` is neither.
    """
    if mask_values not in MASK_VALUES:
        raise ConfigError(f"mask_values={mask_values}: must be one of {', '.join(MASK_VALUES)}")
    if mask_values == "ids":
        picture = Image.fromarray(ids)
        picture.putpalette(classes.palette[: len(classes)].tobytes())
        return picture
    values = {number: each.value for number, each in enumerate(classes.members)}
    if ignored := [value for value in classes.ignored if isinstance(value, tuple) == classes.colored]:
        values[IGNORED] = ignored[0]
    deep = any(np.max(value) > 255 for value in values.values())
    table = np.zeros((256, 3) if classes.colored else 256, np.uint16 if deep else np.uint8)
    table[list(values)] = list(values.values())
    return Image.fromarray(table[ids])
