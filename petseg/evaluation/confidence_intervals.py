"""How sure a score is: bootstrap over images, spread over seeds, and paired comparison of two models or recipes."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from petseg.errors import DataError
from petseg.evaluation import metrics
from petseg.evaluation.large_splits import ResampledTotals

RESAMPLES, POISSON = 2000, "Poisson"
TAIL = 0.025  # share of a distribution on each side of a 95% interval
DRAWN_AT_ONCE = 2**21  # how often each image is in each of some resamples; numbers of 8 bytes

# int64 [N, C, C], the confusion matrix of each image; or what was resampled of more images than that can be kept of.
Counts = np.ndarray | ResampledTotals


class SeedSpread(NamedTuple):
    """Student's distribution of the deviation that other seeds would cause.

    Attributes:
      scale: standard error of the mean, or of the difference of two means; above 0.
      freedom: degrees of freedom.
    """

    scale: float
    freedom: float


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


def interval(samples: np.ndarray, seeds: SeedSpread | None = None) -> tuple[float, float]:
    """The middle 95% of bootstrap samples (Efron's percentile interval), widened by the spread over seeds.

    Of negated samples it is the mirror image to the last bit, so a comparison does not depend on its order.

    Args:
      samples: bootstrap samples; NaN is left out.
      seeds: how far the value might be off with other seeds, independent of the images; None if that is unknown.
    """
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return math.nan, math.nan
    return _quantile(finite, TAIL, seeds), -_quantile(-finite, TAIL, seeds)


def _quantile(samples: np.ndarray, share: float, seeds: SeedSpread | None) -> float:
    """The value below which a share of samples lies; with `seeds`, of the exact distribution of sample plus deviation.

    That distribution is a mixture of Student distributions, one around each sample, so nothing is drawn at random.
    """
    if seeds is None:
        return float(np.quantile(samples, share))
    from scipy import optimize, special  # 0.2 s, which only a comparison of several seeds needs

    def excess(value: float) -> float:
        return float(special.stdtr(seeds.freedom, (value - samples) / seeds.scale).mean()) - share

    deviation = seeds.scale * float(special.stdtrit(seeds.freedom, share))
    low, high = samples.min() + deviation, samples.max() + deviation
    if excess(low) >= 0 or excess(high) <= 0:  # all samples are equal, but for rounding
        return float(low + high) / 2
    return float(optimize.brentq(excess, low, high, xtol=1e-14))


def interval_of_runs(runs: Sequence[Counts]) -> tuple[float, float]:
    """The 95% interval of a recipe's mean IoU, the mean over its runs, over images and seeds.

    Args:
      runs: the counts of the split's images by each run.
    """
    return interval(_over_images(runs), _over_seeds([_scores(runs)]))


def compare(first: Sequence[Counts], second: Sequence[Counts]) -> dict[str, Any]:
    """Whether a recipe is better than another on the same images.

    Args:
      first: the counts of the images by each run of one recipe.
      second: the counts of the same images by the other's runs.

    Returns:
      the `difference` in mean IoU, first minus second; its 95% `interval`, paired over images and, where there are
      several runs, over seeds too; and the probability that the first is `better`, over the same distribution. Where
      there are too many images for a row each, also the kind of `bootstrap`: Poisson, the same images in both.

    Raises:
      DataError: if the counts show that the true masks were not the same.
    """
    _check_same_truth([*first, *second])
    scores = [_scores(runs) for runs in (first, second)]
    differences, seeds = _over_images(first) - _over_images(second), _over_seeds(scores)
    return {
        "difference": float(scores[0].mean() - scores[1].mean()),
        "interval": list(interval(differences, seeds)),
        "better": _share_above_zero(differences, seeds),
        **({"bootstrap": POISSON} if isinstance(first[0], ResampledTotals) else {}),
    }


def _check_same_truth(runs: Sequence[Counts]) -> None:
    """Raises DataError if an image has another number of pixels of some true class in one run than in another."""
    pixels = [(run.confusion_matrix if isinstance(run, ResampledTotals) else run).sum(axis=-1) for run in runs]
    if not all(np.array_equal(each, pixels[0]) for each in pixels[1:]):
        raise DataError("the counts to compare are those of different images, classes or masks; they must be the same")


def _scores(runs: Sequence[Counts]) -> np.ndarray:
    totals = (run.confusion_matrix if isinstance(run, ResampledTotals) else run.sum(axis=0) for run in runs)
    return np.array([metrics.mean_iou(total) for total in totals])


def _over_images(runs: Sequence[Counts]) -> np.ndarray:
    """The mean over runs as it might be on other images, which are drawn anew, the same for all runs: [RESAMPLES]."""
    return np.mean([resampled_mean_iou(counts) for counts in runs], axis=0)


def _share_above_zero(differences: np.ndarray, seeds: SeedSpread | None) -> float:
    if seeds is None:
        return float(np.mean(differences > 0))
    from scipy import special

    return float(np.nanmean(special.stdtr(seeds.freedom, differences / seeds.scale)))


def _over_seeds(scores: Sequence[np.ndarray]) -> SeedSpread | None:
    """How far the mean of one recipe, or the difference of two means, might be off with other seeds; None if unknown.

    The standard error of the runs; of two recipes, as in Welch's test, where one with a single run is taken to vary as
    the other does. Resampling three runs instead would make intervals a third as wide as they must be.
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
