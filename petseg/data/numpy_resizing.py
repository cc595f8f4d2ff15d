"""What `resizing` does, by NumPy alone: for networks that run without TensorFlow, which takes seconds to load.

Results differ from TensorFlow's by the rounding of sums: a picture's by one level at most, here and there.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

# What fills up the network's input where there is no picture: the middle of the range. --input_scaling=symmetric makes
# it nearly 0, as which convolutions see all that lies outside. It is also within 25 levels of ImageNet's mean colour,
# so there is no edge around a picture as strong as one of black would be.
GREY = 128
ROWS = 8  # of the smaller picture at a time
VALUES = 2**17  # of the larger picture's at a time: they fit a core's cache


@dataclasses.dataclass(frozen=True)
class NumpyResizing:
    """A way from pictures to the network's size, as `resizing.Resizing`.

    Attributes:
      size: height h and width w of the network's input.
      method: `stretch`, `letterbox` or `crop`.
    """

    size: tuple[int, int]
    method: str = "stretch"

    def image(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [h, w, 3], resized bilinearly with antialiasing, filled up with grey."""
        if self.method != "crop":
            image = _shrunk(image, self._resized_size(image.shape))
        there = np.full((*self.size, image.shape[2]), GREY, np.uint8)
        (top, above), (left, before) = (_middle(*sides) for sides in zip(image.shape[:2], self.size, strict=True))
        part = image[above : above + self.size[0], before : before + self.size[1]]
        there[top : top + part.shape[0], left : left + part.shape[1]] = part
        return there

    def back(self, logits: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """What was said of the network's input, as said of the picture, from top to bottom.

        Args:
          logits: float32 [h, w, C].
          shape: whose first two are height H and width W of the picture; with `crop` at most the network's input.

        Yields:
          float32 [C, rows, W]; all rows together are H.
        """
        height, width = self._resized_size(shape)
        top, left = (self.size[0] - height) // 2, (self.size[1] - width) // 2
        planes = np.moveaxis(logits[top : top + height, left : left + width], -1, 0)
        yield from _grown(planes, (shape[0], shape[1]))

    def probabilities(self, logits: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """The softmax of `back`, from top to bottom: float32 [rows, W, C]."""
        for planes in self.back(logits, shape):
            planes -= planes.max(axis=0)
            np.exp(planes, out=planes)
            planes /= planes.sum(axis=0)
            yield np.moveaxis(planes, 0, -1)

    def _resized_size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of a picture when it is resized."""
        height, width = shape[:2]
        if self.method == "stretch":
            return self.size
        if self.method == "crop":
            return height, width
        wide = (2 * width * self.size[0] + height) // (2 * height)
        high = (2 * height * self.size[1] + width) // (2 * width)
        return max(min(high, self.size[0]), 1), max(min(wide, self.size[1]), 1)


def _middle(side: int, wanted: int) -> tuple[int, int]:
    """Where the middle of a side begins: in what is wanted, and in what is there."""
    return max(wanted - side, 0) // 2, max(side - wanted, 0) // 2


def _shrunk(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture, uint8 [H, W, 3], resized bilinearly with antialiasing; its floats are never all in memory."""
    _, width, channels = image.shape
    down, across = _with_antialiasing(image.shape[0], size[0]), _with_antialiasing(width, size[1]).T.copy()
    found = np.empty((*size, channels), np.uint8)
    for start in range(0, size[0], ROWS):
        weights, used = _used(down[start : start + ROWS])
        rows = weights @ image[used].reshape(-1, width * channels).astype(np.float32)
        planes = np.moveaxis(rows.reshape(-1, width, channels), -1, 1)
        resized = (planes.reshape(-1, width) @ across).reshape(-1, channels, size[1])
        found[start : start + ROWS] = np.moveaxis(resized, 1, -1).round().clip(0, 255)
    return found


def _grown(planes: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Planes, float32 [C, h, w], resized bilinearly, a few rows at a time: [C, rows, W]."""
    count, height, width = planes.shape
    # Sums of neighbours, not products with a matrix: the libraries for these keep all cores busy with waiting.
    left, right, share = _neighbours(width, size[1])
    by_rows = np.ascontiguousarray(np.moveaxis(planes, 1, 0))
    wide = by_rows[..., right]
    wide -= by_rows[..., left]
    wide *= share
    wide += by_rows[..., left]
    wide = wide.reshape(height, count * size[1])
    above, below, share = _neighbours(height, size[0])
    rows = max(1, VALUES // wide.shape[1])
    for i in range(0, size[0], rows):
        part = slice(i, i + rows)
        mixed = wide[below[part]]
        mixed -= wide[above[part]]
        mixed *= share[part, None]
        mixed += wide[above[part]]
        yield np.moveaxis(mixed.reshape(-1, count, size[1]), 1, 0)


def _used(weights: np.ndarray) -> tuple[np.ndarray, slice]:
    """The columns of a matrix from the first to the last that is not all zeros, and which these are."""
    columns = np.flatnonzero(weights.any(axis=0))
    used = slice(columns[0], columns[-1] + 1)
    return np.ascontiguousarray(weights[:, used]), used


def _with_antialiasing(length: int, wanted: int) -> np.ndarray:
    """How much each of `length` pixels counts in each of those wanted, float32 [wanted, length]: a triangle's share."""
    step = length / wanted
    reach = max(step, 1.0)
    distances = np.arange(length) + 0.5 - (np.arange(wanted)[:, None] + 0.5) * step
    weights = np.maximum(1 - np.abs(distances) / reach, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _neighbours(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two of `length` pixels between which each of those wanted lies, and how much the second counts, float32."""
    places = np.clip((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0, length - 1)
    first = np.floor(places).astype(int)
    return first, np.minimum(first + 1, length - 1), (places - first).astype(np.float32)
