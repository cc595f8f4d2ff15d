"""Confidence intervals of the mean IoU: bootstrap over images, spread over seeds, paired comparison of two recipes."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from petseg.errors import DataError
from petseg.evaluation import metrics
from petseg.evaluation.large_splits import ResampledTotals

RESAMPLES, POISSON = 2000, "Poisson"
TAIL = 0.025  # probability on each side of a 95% interval
DRAWN_AT_ONCE = 2**21  # bound on resamples x images whose int64 weights are in memory at once

# Confusion matrices of all images, int64 [N, C, C]; or the resampled totals of a large split.
Counts = np.ndarray | ResampledTotals


class SeedSpread(NamedTuple):
    """Student's t distribution of the deviation due to the choice of seeds."""

    scale: float  # standard error of the mean, or of the difference of two means; positive
    freedom: float  # degrees of freedom


def resampled_mean_iou(counts: Counts, seed: int = 0) -> np.ndarray:
    """Mean IoU of `RESAMPLES` bootstrap resamples of a split's images.

    The same seed and number of images give the same resamples, so two models' scores are paired. Returns float64
    [RESAMPLES].
    """
    if isinstance(counts, ResampledTotals):
        return counts.mean_iou()
    matrices, count = counts, len(counts)
    generator, chances = np.random.default_rng(seed), np.full(count, 1 / count)
    # IoU needs nothing else. Integers below 2**53 in float64 have exact sums in any order.
    parts = np.concatenate(metrics.intersections_and_unions(matrices), axis=-1).astype(np.float64)
    scores = np.empty(RESAMPLES)
    chunk = max(1, DRAWN_AT_ONCE // max(count, parts.shape[-1]))
    for first in range(0, RESAMPLES, chunk):
        drawn = generator.multinomial(count, chances, min(chunk, RESAMPLES - first))
        intersections, unions = np.split(drawn.astype(np.float64) @ parts, 2, axis=-1)
        scores[first : first + len(drawn)] = metrics.mean_over_classes(metrics.ratio(intersections, unions))
    return scores


def interval(samples: np.ndarray, seeds: SeedSpread | None = None) -> tuple[float, float]:
    """The 95% percentile interval of bootstrap samples (Efron), widened by the spread over seeds.

    Negated samples give exactly the mirrored interval, so a comparison does not depend on the order of its sides.
    """
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return math.nan, math.nan
    return _quantile(finite, TAIL, seeds), -_quantile(-finite, TAIL, seeds)


def _quantile(samples: np.ndarray, share: float, seeds: SeedSpread | None) -> float:
    """Quantile of the samples; with `seeds`, of the mixture of Student's t distributions centred on them (exact)."""
    if seeds is None:
        return float(np.quantile(samples, share))
    from scipy import optimize, special  # takes 0.2 s, and only comparisons of several seeds need it

    def excess(value: float) -> float:
        return float(special.stdtr(seeds.freedom, (value - samples) / seeds.scale).mean()) - share

    deviation = seeds.scale * float(special.stdtrit(seeds.freedom, share))
    low, high = samples.min() + deviation, samples.max() + deviation
    if excess(low) >= 0 or excess(high) <= 0:  # all samples are equal up to rounding
        return float(low + high) / 2
    return float(optimize.brentq(excess, low, high, xtol=1e-14))


def interval_of_runs(runs: Sequence[Counts]) -> tuple[float, float]:
    """The 95% interval, over images and seeds, of a recipe's mean IoU averaged over its runs' counts."""
    return interval(_over_images(runs), _over_seeds([_scores(runs)]))


def compare(first: Sequence[Counts], second: Sequence[Counts]) -> dict[str, Any]:
    """Paired comparison of two recipes on the same images.

    Returns:
      the `difference` in mean IoU, first minus second; its 95% `interval` over images and, with several runs, seeds;
      `better`, the probability under the same distribution that the first is better; for large splits also
      `bootstrap`, "Poisson".

    Raises DataError if the counts show that the true masks differ.
    """
    # Pixels of each true class, by image.
    matrices = (run.confusion_matrix if isinstance(run, ResampledTotals) else run for run in (*first, *second))
    pixels = [matrix.sum(axis=-1) for matrix in matrices]
    if not all(np.array_equal(each, pixels[0]) for each in pixels[1:]):
        raise DataError("the two sides were scored on different images, classes or masks; they must be the same")
    scores = [_scores(runs) for runs in (first, second)]
    differences, seeds = _over_images(first) - _over_images(second), _over_seeds(scores)
    return {
        "difference": float(scores[0].mean() - scores[1].mean()),
        "interval": list(interval(differences, seeds)),
        "better": _share_above_zero(differences, seeds),
        **({"bootstrap": POISSON} if isinstance(first[0], ResampledTotals) else {}),
    }


def _scores(runs: Sequence[Counts]) -> np.ndarray:
    totals = (run.confusion_matrix if isinstance(run, ResampledTotals) else run.sum(axis=0) for run in runs)
    return np.array([metrics.mean_iou(total) for total in totals])


def _over_images(runs: Sequence[Counts]) -> np.ndarray:
    """Mean IoU averaged over runs, in resamples of images that all runs share: float64 [RESAMPLES]."""
    return np.mean([resampled_mean_iou(counts) for counts in runs], axis=0)


def _share_above_zero(differences: np.ndarray, seeds: SeedSpread | None) -> float:
    if seeds is None:
        return float(np.mean(differences > 0))
    from scipy import special

    return float(np.nanmean(special.stdtr(seeds.freedom, differences / seeds.scale)))


def _over_seeds(scores: Sequence[np.ndarray]) -> SeedSpread | None:
    """Standard error over runs of one recipe's mean, or of the difference of two recipes' means; None if unknown.

    For two recipes as in Welch's test; a recipe with a single run is assumed to have the other's variance.
    Bootstrapping three runs instead would give intervals a third as wide as they must be.
    """
    counts = np.array([len(each) for each in scores])
    variances = np.array([each.var(ddof=1) for each in scores if len(each) > 1])
    if not len(variances) or not variances.any():
        return None
    if len(variances) < len(scores):
        variance, freedom = variances[0] * np.sum(1 / counts), counts.max() - 1
    else:
        parts = variances / counts
        variance, freedom = parts.sum(), parts.sum() ** 2 / np.sum(parts**2 / (counts - 1))
    return SeedSpread(math.sqrt(variance), float(freedom))
