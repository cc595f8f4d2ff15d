"""A network of one size, used on pictures of any size. Imports no TensorFlow: what computes is handed in."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from petseg.models import tiles

SMALLEST = np.float32(1e-30)  # probability, so that it has a logarithm
# More at once is no faster on CPU cores, but takes more memory.
MOST_IMAGES, MOST_PIXELS = 8, 8 * 128 * 128


class Runner(Protocol):
    """A network, whatever computes it, with the ways of a picture to its size and back.

    What it returns is an array of NumPy, or one that NumPy can read.

    Attributes:
      batch_size: number of pictures at a time at which it is fast, and does not take much memory.
    """

    batch_size: int

    def shrink(self, image: np.ndarray) -> np.ndarray:
        """A picture, uint8 [H, W, 3], at the network's size, uint8 [h, w, 3]."""

    def logits(self, images: np.ndarray) -> Any:
        """What the network says of pictures of its size, uint8 [B, h, w, 3] -> float32 [B, h, w, C]."""

    def grow(self, logits: Any, shape: tuple[int, ...]) -> Any:
        """What was said of a picture at the network's size, [h, w, C], at its own size, of a shape [H, W, ...]."""

    def probabilities(self, logits: Any, shape: tuple[int, ...]) -> Iterable[np.ndarray]:
        """The softmax of `grow`, from top to bottom: float32 [rows, W, C], of one or more rows at a time."""


class AnySizeModel:
    """Says of each pixel of a picture of any size which class it is in.

    A picture comes to the network's size as in training, and what the network says is brought back to the picture's. In
    tiles, each tile is treated as a picture of its own.

    Args:
      runner: the network.
      tile: height and width of tiles; None: pictures are taken as a whole. A runner that crops needs tiles, no larger
        than the network's input.
    """

    def __init__(self, runner: Runner, *, tile: tuple[int, int] | None = None):
        self.runner, self._tile = runner, tile

    def logits(self, image: np.ndarray) -> Any:
        """Float32 [H, W, C], whose softmax are the probabilities, for a picture uint8 [H, W, 3]."""
        if self.is_whole(image.shape):
            return self.runner.grow(self.logits_of([self.runner.shrink(image)])[0], image.shape)
        return np.log(np.maximum(self.probabilities(image), SMALLEST))

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Float32 [H, W, C] for a picture uint8 [H, W, 3]."""
        return np.concatenate(list(self.stripes(image)))

    def several(self, images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """The `probabilities` of pictures, each of another size if need be; those taken as a whole in batches."""
        size = self.runner.batch_size
        for i in range(0, len(images), size):
            batch = images[i : i + size]
            small = [self.runner.shrink(image) for image in batch if self.is_whole(image.shape)]
            logits = iter(self.logits_of(small) if small else ())
            for image in batch:
                if self.is_whole(image.shape):
                    yield np.concatenate(list(self.runner.probabilities(next(logits), image.shape)))
                else:
                    yield self.probabilities(image)

    def stripes(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """The probabilities from top to bottom, float32 [rows, W, C]; in tiles, few rows are in memory."""
        if self.is_whole(image.shape):
            yield from self.runner.probabilities(self.logits_of([self.runner.shrink(image)])[0], image.shape)
        else:
            yield from tiles.stripes(image, self._tile or image.shape[:2], self._of_tiles)

    def is_whole(self, shape: tuple[int, ...]) -> bool:
        """Whether a picture [H, W, ...] is taken as a whole, and not in several tiles."""
        return self._tile is None or tiles.is_one_tile(shape, self._tile)

    def logits_of(self, shrunk: Sequence[np.ndarray]) -> Sequence[Any]:
        """What the network says of pictures of its size, a batch: float32 [h, w, C] of each."""
        return list(self.runner.logits(np.stack(shrunk)))

    def _of_tiles(self, row: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        size = self.runner.batch_size
        for i in range(0, len(row), size):
            batch = row[i : i + size]
            for part, logits in zip(batch, self.logits_of([self.runner.shrink(part) for part in batch]), strict=True):
                yield np.concatenate(list(self.runner.probabilities(logits, part.shape)))


def batch_size(size: Sequence[int]) -> int:
    """The `Runner.batch_size` of a network whose input has a height and width."""
    return max(1, min(MOST_IMAGES, MOST_PIXELS // (size[0] * size[1])))
