"""How sure a score is: bootstrap over images, spread over seeds, and paired comparison of two models or recipes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from petseg.evaluation import metrics
from petseg.evaluation.large_splits import ResampledTotals

RESAMPLES, POISSON = 2000, "Poisson"
DRAWN_AT_ONCE = 2**21  # how often each image is in each of some resamples; numbers of 8 bytes

# int64 [N, C, C], the confusion matrix of each image; or what was resampled of more images than that can be kept of.
Counts = np.ndarray | ResampledTotals


def resampled_mean_iou(counts: Counts, seed: int = 0) -> np.ndarray:
    """Mean IoU of `RESAMPLES` splits that are drawn from this one with replacement, image by image.

    With the same seed and number of images, the same images are drawn, so two models' scores can be paired.

    Args:
      counts: the counts of the split's images.
      seed: seed of the drawing; of totals, which were drawn before, it is theirs.

    Returns:
      float64 [RESAMPLES].
    """
    if isinstance(counts, ResampledTotals):
        return counts.mean_iou()
    matrices, count = counts, len(counts)
    generator, chances = np.random.default_rng(seed), np.full(count, 1 / count)
    # All that IoU needs of a matrix. Sums of whole numbers below 2**53, they do not depend on the order of adding.
    parts = np.concatenate(metrics.intersections_and_unions(matrices), axis=-1).astype(np.float64)
    scores = np.empty(RESAMPLES)
    chunk = max(1, DRAWN_AT_ONCE // max(count, parts.shape[-1]))
    for first in range(0, RESAMPLES, chunk):
        drawn = generator.multinomial(count, chances, min(chunk, RESAMPLES - first))
        intersections, unions = np.split(drawn.astype(np.float64) @ parts, 2, axis=-1)
        scores[first : first + len(drawn)] = metrics.mean_over_classes(metrics.ratio(intersections, unions))
    return scores


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The middle 95% of bootstrap samples (Efron's percentile interval)."""
    low, high = np.nanpercentile(samples, (2.5, 97.5))
    return float(low), float(high)


def interval_of_runs(runs: Sequence[Counts]) -> tuple[float, float]:
    """The 95% interval of a recipe's mean IoU, the mean over its runs, over images and seeds.

    Args:
      runs: the counts of the split's images by each run.
    """
    return interval(_over_images(runs) + _over_seeds([_scores(runs)]))


def compare(first: Sequence[Counts], second: Sequence[Counts]) -> dict[str, Any]:
    """Whether a recipe is better than another on the same images.

    Args:
      first: the counts of the images by each run of one recipe.
      second: the counts of the same images by the other's runs.

    Returns:
      the `difference` in mean IoU, first minus second; its 95% `interval`, paired over images and, where there are
      several runs, over seeds too; and the share of resamples in which the first is `better`. Where there are too many
      images for a row each, also the kind of `bootstrap`: Poisson, the same images in both.
    """
    scores = [_scores(runs) for runs in (first, second)]
    differences = _over_images(first) - _over_images(second) + _over_seeds(scores)
    return {
        "difference": float(scores[0].mean() - scores[1].mean()),
        "interval": list(interval(differences)),
        "better": float(np.mean(differences > 0)),
        **({"bootstrap": POISSON} if isinstance(first[0], ResampledTotals) else {}),
    }


def _scores(runs: Sequence[Counts]) -> np.ndarray:
    totals = (run.confusion_matrix if isinstance(run, ResampledTotals) else run.sum(axis=0) for run in runs)
    return np.array([metrics.mean_iou(total) for total in totals])


def _over_images(runs: Sequence[Counts]) -> np.ndarray:
    """The mean over runs as it might be on other images, which are drawn anew, the same for all runs: [RESAMPLES]."""
    return np.mean([resampled_mean_iou(counts) for counts in runs], axis=0)


def _over_seeds(scores: Sequence[np.ndarray]) -> np.ndarray:
    """How far the mean of one recipe, or the difference of two means, might be off with other seeds: [RESAMPLES].

    Drawn from Student's distribution with the standard error of the runs; of two recipes, as Welch's test has it, and
    one with a single run is taken to vary as the other does. To draw runs anew among three would make intervals a
    third as wide as they must be. Where no recipe has a second run, nothing is known of other seeds.
    """
    counts = np.array([len(each) for each in scores])
    variances = np.array([each.var(ddof=1) for each in scores if len(each) > 1])
    if not len(variances) or not variances.any():
        return np.zeros(RESAMPLES)
    if len(variances) < len(scores):
        variance, freedom = variances[0] * np.sum(1 / counts), counts.max() - 1
    else:
        parts = variances / counts
        variance, freedom = parts.sum(), parts.sum() ** 2 / np.sum(parts**2 / (counts - 1))
    return math.sqrt(variance) * np.random.default_rng(1).standard_t(freedom, RESAMPLES)
