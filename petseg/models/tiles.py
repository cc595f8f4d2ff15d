"""Pictures that are worked off in tiles: where these lie, and how what is said of them becomes one picture again."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

OVERLAP = 4  # neighbouring tiles share at least one part in so many of their side


def stripes(
    image: np.ndarray, tile: tuple[int, int], predict: Callable[[Sequence[np.ndarray]], Iterable[np.ndarray]]
) -> Iterator[np.ndarray]:
    """What is said of a picture when it is said of each of its tiles, from top to bottom.

    Of a place that several tiles cover, it is the mean of what is said of each, in which a tile weighs the less the
    nearer the place is to its edge; so there is no seam. Of a place that one tile covers, it is what is said of that.
    In memory is as much as one row of tiles.

    Args:
      image: uint8 [H, W, 3].
      tile: height and width of the tiles, which are cut to the picture's.
      predict: parts of the picture, uint8 [h, w, 3] -> of each float32 [h, w, C], such as probabilities; it is given
        the tiles of one row, and what it says of one is used before it is asked for the next.

    Yields:
      float32 [rows, W, C]; all rows together are H.
    """
    height, width = min(tile[0], image.shape[0]), min(tile[1], image.shape[1])
    tops, lefts = _starts(image.shape[0], height), _starts(image.shape[1], width)
    down, across = _shares(tops, height), _shares(lefts, width)
    begun: np.ndarray | None = None  # of the rows from the tile's top on, what the tiles so far have said
    for i, top in enumerate(tops):
        row = [image[top : top + height, left : left + width] for left in lefts]
        for j, (left, said) in enumerate(zip(lefts, predict(row), strict=True)):
            if len(tops) == len(lefts) == 1:
                yield said
                return
            if begun is None:
                begun = np.zeros((height, image.shape[1], said.shape[-1]), np.float32)
            begun[:, left : left + width] += said * (down[i][:, None] * across[j])[..., None]
        assert begun is not None
        done = (tops[i + 1] if i + 1 < len(tops) else image.shape[0]) - top
        yield begun[:done]
        rest = begun[done:]
        begun = np.zeros_like(begun)
        begun[: len(rest)] = rest


def is_one_tile(shape: tuple[int, ...], tile: tuple[int, int]) -> bool:
    """Whether one tile covers a picture [H, W, ...]."""
    return shape[0] <= tile[0] and shape[1] <= tile[1]


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin along one side, evenly spread, as few as have the overlap."""
    shared = tile // OVERLAP
    count = 1 if length <= tile else -(-(length - shared) // (tile - shared))
    return [round(i * (length - tile) / max(count - 1, 1)) for i in range(count)]


def _shares(starts: list[int], tile: int) -> list[np.ndarray]:
    """What each tile counts along one side, float32 [tile]; where tiles overlap, their shares sum to 1."""
    window = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
    total = np.zeros(starts[-1] + tile)
    for start in starts:
        total[start : start + tile] += window
    return [(window / total[start : start + tile]).astype(np.float32) for start in starts]
