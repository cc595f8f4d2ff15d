"""What is kept of the counts of images where there are too many for a row each: totals, a bootstrap, a sample.

Pure NumPy. Memory depends on the number of classes alone, not on the number of images.
"""

import math
from typing import NamedTuple

import numpy as np

from petseg.evaluation import metrics

ROWS = 2**16  # images up to which the counts of each are kept
BLOCK = 2**12  # images whose counts are there at one time, in splits of more images than that
SAMPLE = 2**14  # images of such a split whose counts are kept all the same
DRAWN_TOGETHER = 2**10  # images whose weights in all resamples are drawn at one time
POISSON_STEPS = 2**16
SEED = 0


class ResampledTotals(NamedTuple):
    """What scores need of a split and of its resamples, instead of the counts of each image.

    Attributes:
      confusion_matrix: int64 [C, C], over all images, rows true, columns predicted.
      parts: float64 [resamples, 2C], the intersection of each class in each resample, then the unions.
    """

    confusion_matrix: np.ndarray
    parts: np.ndarray

    def mean_iou(self) -> np.ndarray:
        """Of each resample, float64 [resamples]."""
        intersections, unions = np.split(self.parts, 2, axis=-1)
        return metrics.mean_over_classes(metrics.ratio(intersections, unions))


def images_with_rows(count: int) -> np.ndarray:
    """The images, of so many, whose counts are kept: all, or a sample that is a function of their number alone.

    Returns:
      int64 [K], rising.
    """
    if count <= ROWS:
        return np.arange(count)
    return np.sort(np.random.default_rng(SEED).choice(count, SAMPLE, replace=False, shuffle=False))


class LargeSplit:
    """Folds the counts of images into totals, sums of resamples, and the rows of a sample.

    A resample is one of a Poisson bootstrap: an image is in it as often as a number drawn from Poisson(1) says, which
    depends on the image's place in the split and the seed, and on nothing else. So resamples are the same however the
    split is cut, and the same images are drawn for any two models. After Chamandy et al., "Estimating Uncertainty for
    Massive Data Streams", 2012.

    Args:
      count: number of images N.
      num_classes: number of classes C.
      resamples: number of resamples.
      outlines: whether there are counts of outlines too.
      seed: seed of the drawing.

    Attributes:
      ids: int64 [K], the images whose rows are kept.
      confusion_matrices: int64 [K, C, C], their confusion matrices.
      boundaries: int64 [K, C, 4], their `metrics.boundary_counts`; None without outlines.
      boundary_total: int64 [C, 4], over all images that were added; None without outlines.
    """

    def __init__(self, count: int, num_classes: int, *, resamples: int, outlines: bool = False, seed: int = SEED):
        self.count, self._resamples, self._seed = count, resamples, seed
        self.ids = images_with_rows(count)
        self.confusion_matrices = np.zeros([len(self.ids), num_classes, num_classes], np.int64)
        self.boundaries = np.zeros([len(self.ids), num_classes, 4], np.int64) if outlines else None
        self.boundary_total = np.zeros([num_classes, 4], np.int64) if outlines else None
        self._total = np.zeros([num_classes, num_classes], np.int64)
        self._parts = np.zeros([resamples, 2 * num_classes])

    @property
    def totals(self) -> ResampledTotals:
        return ResampledTotals(self._total, self._parts)

    def add(self, first: int, confusion_matrices: np.ndarray, boundaries: np.ndarray | None = None) -> None:
        """Adds images that follow each other; each image of the split must be added once, in any order.

        Args:
          first: place of the first of them in the split.
          confusion_matrices: int64 [M, C, C].
          boundaries: int64 [M, C, 4], where there are outlines.
        """
        last = first + len(confusion_matrices)
        rows = slice(*np.searchsorted(self.ids, (first, last)))
        chosen = self.ids[rows] - first
        self.confusion_matrices[rows] = confusion_matrices[chosen]
        self._total += confusion_matrices.sum(axis=0)
        if self.boundaries is not None and self.boundary_total is not None and boundaries is not None:
            self.boundaries[rows] = boundaries[chosen]
            self.boundary_total += boundaries.sum(axis=0)
        # Whole numbers below 2**53 in float64: sums do not depend on the order of adding.
        parts = np.concatenate(metrics.intersections_and_unions(confusion_matrices), axis=-1).astype(np.float64)
        for chunk in range(first // DRAWN_TOGETHER, math.ceil(last / DRAWN_TOGETHER)):
            begin = chunk * DRAWN_TOGETHER
            here = slice(max(first - begin, 0), min(last - begin, DRAWN_TOGETHER))
            drawn = _poisson(self._resamples, (self._seed, chunk))[:, here].astype(np.float64)
            self._parts += drawn @ parts[here.start + begin - first : here.stop + begin - first]


def _poisson(resamples: int, seed: tuple[int, int]) -> np.ndarray:
    """How often each image of a chunk is in each resample; uint8 [resamples, DRAWN_TOGETHER].

    By the inverse of the distribution in `POISSON_STEPS` steps: ten times as fast as NumPy's own, which counts over
    resamples of a hundred million images, and as exact as the number of resamples can show.
    """
    uniform = np.random.default_rng(seed).integers(0, POISSON_STEPS, (resamples, DRAWN_TOGETHER), np.uint16)
    return _QUANTILES[uniform]


def _poisson_quantiles() -> np.ndarray:
    """The smallest k with P(X <= k) above u, X of Poisson(1), at the middles of the steps of u; uint8."""
    chances = [math.exp(-1) / math.factorial(k) for k in range(20)]
    middles = (np.arange(POISSON_STEPS) + 0.5) / POISSON_STEPS
    return np.searchsorted(np.cumsum(chances), middles, side="right").astype(np.uint8)


_QUANTILES = _poisson_quantiles()
