"""Evaluation of splits with too many images to keep the counts of each: streaming totals in constant memory."""

import functools
import math
from typing import NamedTuple

import numpy as np

from petseg.data import subsampling
from petseg.evaluation import metrics

# Limits on the images whose counts are all kept: their number, and the bytes of their confusion matrices. Larger splits
# keep the counts of a sample, and of a block at a time; both are fractions of the limit.
MOST_ROWS, MOST_BYTES = 2**16, 2**31
SAMPLE_PART, BLOCK_PART = 4, 16
EXTREMES = 16  # worst and best images that are kept
DRAWN_TOGETHER = 2**10  # images whose resampling weights come from one generator
POISSON_STEPS = 2**16
SEED = 0


class ResampledTotals(NamedTuple):
    """Totals of a split and of its bootstrap resamples, in place of the counts of each image."""

    confusion_matrix: np.ndarray  # int64 [C, C], over all images, rows true, columns predicted
    parts: np.ndarray  # float64 [resamples, 2C], intersections of each class, then unions, in each resample

    def mean_iou(self) -> np.ndarray:
        """Mean IoU of each resample, float64 [resamples]."""
        intersections, unions = np.split(self.parts, 2, axis=-1)
        return metrics.mean_over_classes(metrics.ratio(intersections, unions))


def most_rows(num_classes: int) -> int:
    """Largest split whose per-image counts are all kept: 65,536 images with up to 64 classes."""
    return max(1, min(MOST_ROWS, MOST_BYTES // (8 * num_classes**2)))


def is_large(count: int, num_classes: int) -> bool:
    """Whether a split of `count` images exceeds `most_rows`."""
    return count > most_rows(num_classes)


def block_size(num_classes: int) -> int:
    """Approximate number of images of a large split whose counts are in memory at once."""
    return max(1, most_rows(num_classes) // BLOCK_PART)


class LargeSplit:
    """Accumulates counts: totals, Poisson bootstrap resamples, the counts of a sample, the best and worst images.

    In each resample an image is weighted by a draw from Poisson(1) that depends only on the seed and the image's
    position in the split. So resamples do not depend on how the split is divided into blocks, and two models are
    compared on the same resamples. Chamandy et al., "Estimating Uncertainty for Massive Data Streams", 2012.

    Attributes:
      ids: int64 [K], sorted ids of the images whose counts are kept; a sample that is a function of N and C.
      confusion_matrices: int64 [K, C, C], their confusion matrices.
      boundaries: int64 [K, C, 4], their `metrics.boundary_counts`; None without `outlines`.
      boundary_total: int64 [C, 4], over all added images; None without `outlines`.
      confusion_matrix: int64 [C, C], over all added images.
      truth: digest of the true masks of all added images and their positions.
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
        """Totals of all images, for intervals and comparisons."""
        return ResampledTotals(self.confusion_matrix, self._parts)

    @property
    def extremes(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the worst and the best images, from worst to best, and their mean IoUs; without NaN."""
        return self._extreme_ids, self._extreme_scores

    def add(
        self,
        first: int,
        confusion_matrices: np.ndarray,
        boundaries: np.ndarray | None = None,
        mask_digests: np.ndarray | None = None,
    ) -> None:
        """Adds consecutive images; each image of the split must be added once, in any order of blocks.

        Args:
          first: position of the first of them in the split.
          boundaries: int64 [M, C, 4]; needed with `outlines`.
          mask_digests: int64 [M], digests of the true masks; None if the evaluation will not be compared.
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
            # A sum with a distinct odd factor per position does not depend on the division into blocks.
            factors = 2 * np.arange(first, last, dtype=np.uint64) + np.uint64(1)
            self.truth = (self.truth + int((mask_digests.astype(np.uint64) * factors).sum())) % 2**63
        self._add_extremes(first, metrics.mean_iou(confusion_matrices))
        if self._resamples:
            self._add_to_resamples(first, confusion_matrices)

    def _add_extremes(self, first: int, scores: np.ndarray) -> None:
        found = np.flatnonzero(np.isfinite(scores))
        ids = np.concatenate([self._extreme_ids, first + found])
        scores = np.concatenate([self._extreme_scores, scores[found]])
        order = np.lexsort((ids, scores))  # ties by position, like a stable sort of all images
        ends = np.concatenate([order[:EXTREMES], order[EXTREMES:][-EXTREMES:]])
        self._extreme_ids, self._extreme_scores = ids[ends], scores[ends]

    def _add_to_resamples(self, first: int, confusion_matrices: np.ndarray) -> None:
        last = first + len(confusion_matrices)
        # Integers below 2**53 in float64: exact sums in any order.
        parts = np.concatenate(metrics.intersections_and_unions(confusion_matrices), axis=-1).astype(np.float64)
        for chunk in range(first // DRAWN_TOGETHER, math.ceil(last / DRAWN_TOGETHER)):
            begin = chunk * DRAWN_TOGETHER
            here = slice(max(first - begin, 0), min(last - begin, DRAWN_TOGETHER))
            drawn = poisson_weights(self._resamples, self._seed, chunk)[:, here].astype(np.float64)
            self._parts += drawn @ parts[here.start + begin - first : here.stop + begin - first]


def poisson_weights(resamples: int, seed: int, chunk: int) -> np.ndarray:
    """Draws from Poisson(1), the weight of each image of a chunk in each resample: uint8 [resamples, DRAWN_TOGETHER].

    Inverse sampling from 16-bit uniforms is six times as fast as `Generator.poisson`.
    """
    uniform = np.random.default_rng((seed, chunk)).integers(0, POISSON_STEPS, (resamples, DRAWN_TOGETHER), np.uint16)
    return _poisson_quantiles()[uniform]


@functools.cache
def _poisson_quantiles() -> np.ndarray:
    """Quantiles of Poisson(1) at `POISSON_STEPS` evenly spaced probabilities, uint8."""
    from scipy.stats import poisson  # imported here because it takes 0.5 s, and only large splits need it

    return poisson.ppf((np.arange(POISSON_STEPS) + 0.5) / POISSON_STEPS, 1).astype(np.uint8)
