"""`resizing` with NumPy and Pillow, for networks that run without TensorFlow, which takes seconds to load.

The results differ from TensorFlow's in the rounding of sums only: logits of size 1 by at most 2e-4, and an image's
values by at most one level, in about one of 10,000.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from PIL import Image

# What fills up the network's input where there is no picture: the middle of the range. --input_scaling=symmetric makes
# it nearly 0, as which convolutions see all that lies outside. It is also within 25 levels of ImageNet's mean colour,
# so there is no edge around a picture as strong as one of black would be.
GREY = 128
VALUES = 2**17  # at a time when logits are enlarged: they fit a core's cache


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

    def to_image_size(self, logits: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
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
        for planes in self.to_image_size(logits, shape):
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
    """An image, uint8 [H, W, C], resized with antialiasing.

    As floats, one channel at a time: Pillow rounds uint8 images twice, which changes every sixth value by one level.
    """
    channels = (Image.fromarray(image[..., i]).convert("F") for i in range(image.shape[2]))
    resized = [np.asarray(channel.resize(size[::-1], Image.Resampling.BILINEAR)) for channel in channels]
    return np.stack(resized, axis=-1).round().clip(0, 255).astype(np.uint8)


def _grown(planes: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Planes, float32 [C, h, w], resized without antialiasing, a few rows at a time: [C, rows, W]."""
    count, height, width = planes.shape
    images = [Image.fromarray(plane) for plane in planes]
    rows = max(1, VALUES // (count * size[1]))
    for top in range(0, size[0], rows):
        bottom = min(top + rows, size[0])
        shape = (size[1], bottom - top)
        box = (0, top * height / size[0], width, bottom * height / size[0])
        if size[0] < height or size[1] < width:  # where `resize` would apply antialiasing
            parts = [image.transform(shape, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR) for image in images]
        else:
            parts = [image.resize(shape, Image.Resampling.BILINEAR, box) for image in images]
        yield np.stack([np.asarray(part) for part in parts])
