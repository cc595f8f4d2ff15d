"""How sure a score is: bootstrap over images, and paired comparison of two models."""

from typing import Any

import numpy as np

from petseg.evaluation import metrics

RESAMPLES = 2000
DRAWN_AT_ONCE = 2**21  # how often each image is in each of some resamples; numbers of 8 bytes


def resampled_mean_iou(matrices: np.ndarray, seed: int = 0) -> np.ndarray:
    """Mean IoU of `RESAMPLES` splits that are drawn from this one with replacement, image by image.

    With the same seed and number of images, the same images are drawn, so two models' scores can be paired.

    Args:
      matrices: int64 [N, C, C], the confusion matrix of each image.
      seed: seed of the drawing.

    Returns:
      float64 [RESAMPLES].
    """
    count = len(matrices)
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


def compare(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Whether a model is better than another on the same images.

    Args:
      first: int64 [N, C, C], confusion matrices of one model.
      second: int64 [N, C, C], those of the other, image by image.

    Returns:
      the `difference` in mean IoU, first minus second, its paired bootstrap `interval`, and the share of resamples in
      which the first is `better`.
    """
    differences = resampled_mean_iou(first) - resampled_mean_iou(second)
    return {
        "difference": float(metrics.mean_iou(first.sum(axis=0)) - metrics.mean_iou(second.sum(axis=0))),
        "interval": list(interval(differences)),
        "better": float(np.mean(differences > 0)),
    }
