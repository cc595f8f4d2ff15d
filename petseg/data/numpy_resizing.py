"""`resizing` with NumPy and Pillow, for inference without loading TensorFlow.

Results differ from TensorFlow's only by rounding: logits of size 1 by at most 2e-4, and about one of 10,000 image
values by one level.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from PIL import Image

from petseg.config.image_spec import GREY

VALUES = 2**17  # resized logits at a time, to fit a core's cache


@dataclasses.dataclass(frozen=True)
class NumpyResizing:
    """Resizing between image size and network input size, with the attributes of `resizing.Resizing`."""

    size: tuple[int, int]
    method: str = "stretch"
    padding: tuple[int, ...] = (GREY,)

    def image(self, image: np.ndarray) -> np.ndarray:
        """Resizes uint8 or uint16 [H, W, C] to [h, w, C], bilinear with antialiasing, padded."""
        if self.method != "crop":
            image = resize_image(image, self._resized_size(image.shape))
        canvas = np.full((*self.size, image.shape[2]), self.padding, image.dtype)
        sides = list(zip(image.shape[:2], self.size, strict=True))
        above, before = (max(side - wanted, 0) // 2 for side, wanted in sides)
        top, left = (max(wanted - side, 0) // 2 for side, wanted in sides)
        part = image[above : above + self.size[0], before : before + self.size[1]]
        canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
        return canvas

    def to_image_size(self, logits: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """Resizes logits, float32 [h, w, C], to the image's size, a few rows at a time from the top.

        Args:
          shape: height H and width W of the image first; with `crop` they must not exceed the network's input.

        Yields:
          float32 [C, rows, W]; H rows in all.
        """
        height, width = self._resized_size(shape)
        top, left = (self.size[0] - height) // 2, (self.size[1] - width) // 2
        planes = np.moveaxis(logits[top : top + height, left : left + width], -1, 0)
        yield from _resize_planes(planes, (shape[0], shape[1]))

    def probabilities(self, logits: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """Softmax of the resized logits, a few rows at a time: float32 [rows, W, C]."""
        for planes in self.to_image_size(logits, shape):
            planes -= planes.max(axis=0)
            np.exp(planes, out=planes)
            planes /= planes.sum(axis=0)
            yield np.moveaxis(planes, 0, -1)

    def _resized_size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the image before padding."""
        height, width = shape[:2]
        if self.method == "stretch":
            return self.size
        if self.method == "crop":
            return height, width
        wide = (2 * width * self.size[0] + height) // (2 * height)
        high = (2 * height * self.size[1] + width) // (2 * width)
        return max(min(high, self.size[0]), 1), max(min(wide, self.size[1]), 1)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 or uint16 [H, W, C] with antialiasing."""
    # In float channels, because Pillow rounds uint8 images twice, which changes every sixth value by one level.
    channels = (Image.fromarray(image[..., i]).convert("F") for i in range(image.shape[2]))
    resized = [np.asarray(channel.resize(size[::-1], Image.Resampling.BILINEAR)) for channel in channels]
    return np.stack(resized, axis=-1).round().clip(0, np.iinfo(image.dtype).max).astype(image.dtype)


def _resize_planes(planes: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Resizes float32 [C, h, w] without antialiasing, a few rows at a time: [C, rows, W]."""
    count, height, width = planes.shape
    images = [Image.fromarray(plane) for plane in planes]
    rows = max(1, VALUES // (count * size[1]))
    for top in range(0, size[0], rows):
        bottom = min(top + rows, size[0])
        shape = (size[1], bottom - top)
        box = (0, top * height / size[0], width, bottom * height / size[0])
        if size[0] < height or size[1] < width:  # `resize` would apply antialiasing
            parts = [image.transform(shape, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR) for image in images]
        else:
            parts = [image.resize(shape, Image.Resampling.BILINEAR, box) for image in images]
        yield np.stack([np.asarray(part) for part in parts])
