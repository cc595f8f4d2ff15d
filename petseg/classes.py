"""The classes of the pictures: names, colours, and the value of pixels that are in none."""

import numpy as np

CLASS_NAMES = ("pet", "background", "border")
# Okabe and Ito's colours, which colour-blind readers can tell apart: vermilion, blue, yellow.
CLASS_COLORS = np.array([[213, 94, 0], [0, 114, 178], [240, 228, 66]], np.uint8)
IGNORED = 255  # class id of a pixel that is in no class: weight 0, counted nowhere
