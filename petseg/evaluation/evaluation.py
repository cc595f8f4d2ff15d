"""The result of an evaluation: counts of one pass over a split, from which all scores derive."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from petseg.evaluation import metrics
from petseg.evaluation.confidence_intervals import Counts
from petseg.evaluation.large_splits import LargeSplit


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Counts of one pass over a split."""

    loss: float  # summed loss over its denominator, as in training
    confusion_matrices: np.ndarray  # int64 [K, C, C], one per example of `ids`, rows true, columns predicted
    boundaries: np.ndarray | None = None  # int64 [K, C, 4], as `metrics.boundary_counts`; None without details
    # float64 [bins, 3], as `metrics.calibration_counts`, over all examples; None without details
    calibration: np.ndarray | None = None
    # totals of a large split, for which the counts above are those of a sample; None if they are of all examples
    large_split: LargeSplit | None = None
    # int64 [N], a digest of each true mask; None without details, and of a large split
    mask_digests: np.ndarray | None = None
    unit: int = 1  # count of a pixel of weight 1 in the confusion matrices

    @property
    def examples(self) -> int:
        return self.large_split.count if self.large_split else len(self.confusion_matrices)

    @property
    def ids(self) -> Sequence[int]:
        """Sorted ids of the K examples whose counts were kept: all, or a sample."""
        return self.large_split.ids.tolist() if self.large_split else range(len(self.confusion_matrices))

    @property
    def counts(self) -> Counts:
        """Counts of all examples, for intervals and comparisons."""
        return self.large_split.totals if self.large_split else self.confusion_matrices

    @property
    def confusion_matrix(self) -> np.ndarray:
        """int64 [C, C], summed over all examples."""
        return self.large_split.confusion_matrix if self.large_split else self.confusion_matrices.sum(axis=0)

    @property
    def pixels(self) -> np.ndarray:
        """[C, C], pixels of all examples: int64; with --score_weights float64, the sums of their weights."""
        return self.confusion_matrix if self.unit == 1 else self.confusion_matrix / self.unit

    @property
    def pixels_of_images(self) -> np.ndarray:
        """[K, C, C], as `pixels`, of each example of `ids`."""
        return self.confusion_matrices if self.unit == 1 else self.confusion_matrices / self.unit

    @property
    def truth(self) -> np.ndarray | None:
        """Digests of the true masks, int64: equal for evaluations against the same masks; None without details.

        One per example; one in all for a large split.
        """
        return np.array([self.large_split.truth]) if self.large_split else self.mask_digests

    @property
    def boundary_total(self) -> np.ndarray | None:
        """int64 [C, 4], summed over all examples; None without details."""
        if self.large_split:
            return self.large_split.boundary_total
        return None if self.boundaries is None else self.boundaries.sum(axis=0)

    def ranked(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids of examples from worst to best, int64, and their mean IoUs, without examples whose score is undefined.

        Of a large split, only the worst and the best ones.
        """
        if self.large_split:
            return self.large_split.extremes
        scores = metrics.mean_iou(self.confusion_matrices)
        order = np.argsort(scores, kind="stable")[: np.isfinite(scores).sum()]
        return order, scores[order]
