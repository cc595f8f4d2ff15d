"""What is kept of the counts of images where there are too many for a row each: totals, a bootstrap, a sample, ends.

Memory depends on the number of classes alone, not on the number of images.
"""

import math
from typing import NamedTuple

import numpy as np

from petseg.data import subsampling
from petseg.evaluation import metrics

# Images up to which the counts of each are kept, and what their confusion matrices may take; beyond, parts of that are
# the images of a sample, and those whose counts are there at one time.
MOST_ROWS, MOST_BYTES = 2**16, 2**31
SAMPLE_PART, BLOCK_PART = 4, 16
EXTREMES = 16  # images whose scores are kept at each end
DRAWN_TOGETHER = 2**10  # images whose weights in all resamples come from one generator
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


def most_rows(num_classes: int) -> int:
    """The most images that a split can have for the counts of each to be kept: 65,536 of up to 64 classes."""
    return max(1, min(MOST_ROWS, MOST_BYTES // (8 * num_classes**2)))


def is_large(count: int, num_classes: int) -> bool:
    """Whether so many images are too many for a row each."""
    return count > most_rows(num_classes)


def block_size(num_classes: int) -> int:
    """About how many images of a large split have their counts in memory at one time."""
    return max(1, most_rows(num_classes) // BLOCK_PART)


class LargeSplit:
    """Folds the counts of images into totals, sums of resamples, the rows of a sample, and the best and worst images.

    A resample is one of a Poisson bootstrap: an image is in it as often as a number drawn from Poisson(1) says, which
    depends on the image's place in the split and the seed, and on nothing else. So resamples are the same however the
    split is cut, and the same images are drawn for any two models. After Chamandy et al., "Estimating Uncertainty for
    Massive Data Streams", 2012.

    Args:
      count: number of images N.
      num_classes: number of classes C.
      resamples: number of resamples; 0 if no interval will be asked for.
      outlines: whether there are counts of outlines too.
      seed: seed of the drawing.

    Attributes:
      count: number of images N.
      ids: int64 [K], the images whose rows are kept, rising; a sample that is a function of N and C.
      confusion_matrices: int64 [K, C, C], their confusion matrices.
      boundaries: int64 [K, C, 4], their `metrics.boundary_counts`; None without outlines.
      boundary_total: int64 [C, 4], over all images that were added; None without outlines.
      confusion_matrix: int64 [C, C], over all images that were added.
      truth: digest of the true masks of all images that were added, and of their order.
    """

    def __init__(self, count: int, num_classes: int, *, resamples: int, outlines: bool = False, seed: int = SEED):
        self.count, self._resamples, self._seed = count, resamples, seed
        self.ids = subsampling.positions(count, max(1, most_rows(num_classes) // SAMPLE_PART), SEED)
        self.confusion_matrices = np.zeros([len(self.ids), num_classes, num_classes], np.int64)
        self.boundaries = np.zeros([len(self.ids), num_classes, 4], np.int64) if outlines else None
        self.boundary_total = np.zeros([num_classes, 4], np.int64) if outlines else None
        self.confusion_matrix = np.zeros([num_classes, num_classes], np.int64)
        self.truth = 0
        self._parts = np.zeros([resamples, 2 * num_classes])
        self._extreme_ids, self._extreme_scores = np.zeros(0, np.int64), np.zeros(0)

    @property
    def totals(self) -> ResampledTotals:
        """What intervals and comparisons need of all images."""
        return ResampledTotals(self.confusion_matrix, self._parts)

    @property
    def extremes(self) -> tuple[np.ndarray, np.ndarray]:
        """The worst and the best of all images, and their mean IoUs, from the worst to the best; without NaN."""
        return self._extreme_ids, self._extreme_scores

    def add(
        self,
        first: int,
        confusion_matrices: np.ndarray,
        boundaries: np.ndarray | None = None,
        mask_digests: np.ndarray | None = None,
    ) -> None:
        """Adds images that follow each other; each image of the split must be added once, in any order.

        Args:
          first: place of the first of them in the split.
          confusion_matrices: int64 [M, C, C].
          boundaries: int64 [M, C, 4], where there are outlines.
          mask_digests: int64 [M], digests of the true masks; None where nothing will be compared.
        """
        last = first + len(confusion_matrices)
        rows = slice(*np.searchsorted(self.ids, (first, last)))
        chosen = self.ids[rows] - first
        self.confusion_matrices[rows] = confusion_matrices[chosen]
        self.confusion_matrix += confusion_matrices.sum(axis=0)
        if self.boundaries is not None and self.boundary_total is not None and boundaries is not None:
            self.boundaries[rows] = boundaries[chosen]
            self.boundary_total += boundaries.sum(axis=0)
        if mask_digests is not None:
            # A different odd factor for each place; a sum, so that it does not matter how the split is cut.
            factors = 2 * np.arange(first, last, dtype=np.uint64) + np.uint64(1)
            self.truth = (self.truth + int((mask_digests.astype(np.uint64) * factors).sum())) % 2**63
        self._add_extremes(first, metrics.mean_iou(confusion_matrices))
        if self._resamples:
            self._add_to_resamples(first, confusion_matrices)

    def _add_extremes(self, first: int, scores: np.ndarray) -> None:
        found = np.flatnonzero(np.isfinite(scores))
        ids = np.concatenate([self._extreme_ids, first + found])
        scores = np.concatenate([self._extreme_scores, scores[found]])
        order = np.lexsort((ids, scores))  # equal scores by place, as a stable sort of all images has them
        ends = np.concatenate([order[:EXTREMES], order[EXTREMES:][-EXTREMES:]])
        self._extreme_ids, self._extreme_scores = ids[ends], scores[ends]

    def _add_to_resamples(self, first: int, confusion_matrices: np.ndarray) -> None:
        last = first + len(confusion_matrices)
        # Whole numbers below 2**53 in float64: sums do not depend on the order of adding.
        parts = np.concatenate(metrics.intersections_and_unions(confusion_matrices), axis=-1).astype(np.float64)
        for chunk in range(first // DRAWN_TOGETHER, math.ceil(last / DRAWN_TOGETHER)):
            begin = chunk * DRAWN_TOGETHER
            here = slice(max(first - begin, 0), min(last - begin, DRAWN_TOGETHER))
            drawn = poisson_weights(self._resamples, self._seed, chunk)[:, here].astype(np.float64)
            self._parts += drawn @ parts[here.start + begin - first : here.stop + begin - first]


def poisson_weights(resamples: int, seed: int, chunk: int) -> np.ndarray:
    """How often each image of a chunk is in each resample; uint8 [resamples, DRAWN_TOGETHER].

    By the inverse of the distribution in `POISSON_STEPS` steps: several times as fast as NumPy's own, and as exact as
    the number of resamples can show.
    """
    uniform = np.random.default_rng((seed, chunk)).integers(0, POISSON_STEPS, (resamples, DRAWN_TOGETHER), np.uint16)
    return _QUANTILES[uniform]


def _poisson_quantiles() -> np.ndarray:
    """The smallest k with P(X <= k) above u, X of Poisson(1), at the middles of the steps of u; uint8."""
    chances = [math.exp(-1) / math.factorial(k) for k in range(20)]
    middles = (np.arange(POISSON_STEPS) + 0.5) / POISSON_STEPS
    return np.searchsorted(np.cumsum(chances), middles, side="right").astype(np.uint8)


_QUANTILES = _poisson_quantiles()
