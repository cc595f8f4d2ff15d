"""Inference on images of any size with a network of fixed input size: resized whole, or in overlapping tiles.

Imports no TensorFlow; a `Runner` computes the logits.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

MIN_PROBABILITY = np.float32(1e-30)  # lower bound before taking logarithms
# Larger batches are no faster on CPU cores, but take more memory.
MAX_BATCH_IMAGES, MAX_BATCH_PIXELS = 8, 8 * 128 * 128
OVERLAP = 4  # neighbouring tiles overlap by at least 1/OVERLAP of their side


class Runner(Protocol):
    """A network of fixed input size [h, w] and the resizing to and from it; arrays are NumPy's or convertible to it."""

    batch_size: int

    def resize_image(self, image: np.ndarray) -> np.ndarray:
        """Resizes an image [H, W, C] to the network's input size, [h, w, C]."""

    def logits(self, images: np.ndarray) -> Any:
        """Logits of images of the network's input size: [B, h, w, C] in transport format -> float32 [B, h, w, C]."""

    def resize_logits(self, logits: Any, shape: tuple[int, ...]) -> Any:
        """Resizes logits [h, w, C] back to an image's shape [H, W, ...]."""

    def probabilities(self, logits: Any, shape: tuple[int, ...]) -> Iterable[np.ndarray]:
        """Softmax of `resize_logits` from top to bottom: float32 [rows, W, C], one or more rows at a time."""


class AnySizeModel:
    """Predicts images of any size, resized as in training; with tiles, each tile is resized like an image.

    Args:
      tile: height and width of the tiles; None: whole images. A runner that crops needs tiles no larger than the
        network's input.
    """

    def __init__(self, runner: Runner, *, tile: tuple[int, int] | None = None):
        self.runner, self._tile = runner, tile

    def logits(self, image: np.ndarray) -> Any:
        """Float32 [H, W, C], whose softmax is `probabilities`, for an image [H, W, C]."""
        if self.is_whole(image.shape):
            return self.runner.resize_logits(self.network_logits([self.runner.resize_image(image)])[0], image.shape)
        return np.log(np.maximum(self.probabilities(image), MIN_PROBABILITY))

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Float32 [H, W, C] for an image [H, W, C]."""
        return np.concatenate(list(self.stripes(image)))

    def stripes(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """Probabilities from top to bottom, float32 [rows, W, C]; of tiles, one row is in memory at a time."""
        if self.is_whole(image.shape):
            logits = self.network_logits([self.runner.resize_image(image)])[0]
            yield from self.runner.probabilities(logits, image.shape)
        else:
            yield from blend_tiles(image, self._tile or image.shape[:2], self._tile_probabilities)

    def is_whole(self, shape: tuple[int, ...]) -> bool:
        """Whether an image [H, W, ...] is predicted without tiles."""
        return self._tile is None or is_one_tile(shape, self._tile)

    def network_logits(self, resized: Sequence[np.ndarray]) -> Sequence[Any]:
        """Logits float32 [h, w, C] of each image of one batch; images have the network's input size."""
        return list(self.runner.logits(np.stack(resized)))

    def _tile_probabilities(self, tiles: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        size = self.runner.batch_size
        for i in range(0, len(tiles), size):
            batch = tiles[i : i + size]
            resized = [self.runner.resize_image(tile) for tile in batch]
            for tile, logits in zip(batch, self.network_logits(resized), strict=True):
                yield np.concatenate(list(self.runner.probabilities(logits, tile.shape)))


def inference_batch_size(size: Sequence[int]) -> int:
    """The `Runner.batch_size` of a network with this input height and width."""
    return max(1, min(MAX_BATCH_IMAGES, MAX_BATCH_PIXELS // (size[0] * size[1])))


def blend_tiles(
    image: np.ndarray, tile: tuple[int, int], predict: Callable[[Sequence[np.ndarray]], Iterable[np.ndarray]]
) -> Iterator[np.ndarray]:
    """Blends per-tile predictions into one, row by row.

    Where tiles overlap, predictions are averaged with weights that fall towards the tile's edge, so there is no seam;
    elsewhere the single tile's prediction is used unchanged. Memory holds one row of tiles.

    Args:
      tile: height and width of the tiles, clipped to the image.
      predict: the tiles of one row, [h, w, C] each -> their predictions, float32 [h, w, C] each; each is used
        before the next one is requested.

    Yields:
      float32 [rows, W, C], H rows in all.
    """
    height, width = min(tile[0], image.shape[0]), min(tile[1], image.shape[1])
    tops, lefts = _tile_starts(image.shape[0], height), _tile_starts(image.shape[1], width)
    row_weights, column_weights = _blend_weights(tops, height), _blend_weights(lefts, width)
    blended: np.ndarray | None = None  # weighted sums for the rows from the current tiles' top on
    for i, top in enumerate(tops):
        row = [image[top : top + height, left : left + width] for left in lefts]
        for j, (left, prediction) in enumerate(zip(lefts, predict(row), strict=True)):
            if len(tops) == len(lefts) == 1:
                yield prediction
                return
            if blended is None:
                blended = np.zeros((height, image.shape[1], prediction.shape[-1]), np.float32)
            blended[:, left : left + width] += prediction * (row_weights[i][:, None] * column_weights[j])[..., None]
        assert blended is not None
        done = (tops[i + 1] if i + 1 < len(tops) else image.shape[0]) - top
        yield blended[:done]
        rest = blended[done:]
        blended = np.zeros_like(blended)
        blended[: len(rest)] = rest


def is_one_tile(shape: tuple[int, ...], tile: tuple[int, int]) -> bool:
    """Whether one tile covers an image [H, W, ...]."""
    return shape[0] <= tile[0] and shape[1] <= tile[1]


def _tile_starts(length: int, tile: int) -> list[int]:
    """Tile offsets along one axis: evenly spaced, as few as the minimum overlap allows."""
    overlap = tile // OVERLAP
    count = 1 if length <= tile else -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / max(count - 1, 1)) for i in range(count)]


def _blend_weights(starts: list[int], tile: int) -> list[np.ndarray]:
    """Weights of each tile along one axis, float32 [tile]; overlapping weights sum to 1."""
    window = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
    total = np.zeros(starts[-1] + tile)
    for start in starts:
        total[start : start + tile] += window
    return [(window / total[start : start + tile]).astype(np.float32) for start in starts]
