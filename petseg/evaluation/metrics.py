"""Segmentation metrics from confusion matrices, class boundaries and confidences."""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from petseg import custom_code
from petseg.classes import Classes
from petseg.errors import ConfigError

CALIBRATION_BINS = 15
ENTRIES_OF_RESULTS = ("step", "split", "examples", "sample", "loss", "confusion_matrix")  # beside the scores
OwnScores = Callable[[np.ndarray, Classes, np.ndarray | None], dict[str, Any]]

# Descriptions in TensorBoard, of scores by class with the class's {name}; a score that is missing here is described by
# its name.
DESCRIPTIONS = {
    "accuracy": "Share of valid pixels whose class is predicted correctly.",
    "mean_iou": "Mean intersection over union (IoU) of the classes.",
    "foreground_iou": "Intersection over union of all foreground classes, borders included, against the rest.",
    "iou": "Intersection over union of {name}: pixels that are and are predicted {name}, over pixels that are either.",
    "dice": "Dice score of {name}: twice the intersection over the sum of the true and the predicted area.",
    "precision": "Share of the pixels predicted {name} that are {name}.",
    "recall": "Share of the pixels of {name} that are predicted {name}.",
}


def from_confusion_matrix(
    matrix: np.ndarray, classes: Classes, own_scores: OwnScores | None = None, images: np.ndarray | None = None
) -> dict[str, Any]:
    """Accuracy, IoU (Jaccard), Dice (F1), precision and recall; a new score is a line in `overall` or `by_class`.

    Ratios with denominator 0 are NaN, and `mean_iou` averages over the classes that occur in truth or prediction, as
    `keras.metrics.MeanIoU` does. Results files, tables, `metrics.csv` and TensorBoard take all scores from here.

    Args:
      matrix: int64 [C, C], rows true, columns predicted.
      images: [N, C, C], the matrices of the single images, for `own_scores`; None: not known, as in training.

    Returns:
      overall scores as floats, `foreground_iou` only if classes are marked as foreground; scores by class as
      dictionaries of floats by class name.
    """
    counts = np.asarray(matrix, np.float64)
    hit, true, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    overall: dict[str, SupportsFloat] = {
        "accuracy": ratio(hit.sum(), counts.sum()),
        "mean_iou": mean_iou(matrix),
        **({"foreground_iou": foreground_iou(matrix, classes)} if classes.foreground_name else {}),
    }
    by_class = {
        "iou": iou(matrix),
        "dice": ratio(2 * hit, true + predicted),
        "precision": ratio(hit, predicted),
        "recall": ratio(hit, true),
    }
    return {
        **{name: float(value) for name, value in overall.items()},
        **{name: dict(zip(classes.names, values.tolist(), strict=True)) for name, values in by_class.items()},
        **(own_scores(matrix, classes, images) if own_scores else {}),
    }


def own(reference: str) -> OwnScores | None:
    """The scoring function of --scores, loaded from its present file; None without that flag.

    The function takes the confusion matrix, int64 [C, C], and the classes; with a parameter `images` also those of the
    single images, int64 [N, C, C], and then has no scores in training. It returns a dictionary of numbers, or of C
    numbers by class, by name. Raises ConfigError if it cannot be loaded; when called, if it fails or returns something
    else.
    """
    function = custom_code.function_of("scores", reference)
    if function is None:
        return None
    takes_images = "images" in inspect.signature(function).parameters

    def scores(matrix: np.ndarray, classes: Classes, images: np.ndarray | None = None) -> dict[str, Any]:
        if takes_images and images is None:
            return {}
        return _checked(reference, function(matrix, classes, **({"images": images} if takes_images else {})), classes)

    return scores


def _checked(reference: str, found: Any, classes: Classes) -> dict[str, Any]:
    """What the function of --scores returned, as scores."""
    scores: dict[str, Any] = {}
    for name, value in found.items() if isinstance(found, Mapping) else [("", found)]:
        values = np.asarray(value)
        if name in DESCRIPTIONS or name in ENTRIES_OF_RESULTS:
            raise ConfigError(f"--scores={reference}: returned {name!r}, a name of petseg's own; must be another")
        is_name = re.fullmatch(r"[a-z]\w*", str(name))
        if not is_name or values.shape not in ((), (len(classes),)) or values.dtype.kind not in "iuf":
            named = f"{name}: " if name else ""
            raise ConfigError(
                f"--scores={reference}: returned {named}{' '.join(repr(value).split())}; must be a dictionary of a "
                f"number, or of {len(classes)} numbers, one for each class, by lower-case names"
            )
        numbers = values.astype(float).tolist()
        scores[name] = dict(zip(classes.names, numbers, strict=True)) if values.shape else numbers
    return scores


def boundary_counts(
    labels: tf.Tensor, predictions: tf.Tensor, valid: tf.Tensor, num_classes: int, tolerance: int
) -> tf.Tensor:
    """Counts boundary pixels of each class, and how many of them match the other boundary within a tolerance.

    A pixel is on the boundary of its class if one of its four neighbours is of another class. Image edges and edges of
    ignored pixels are no boundaries. After Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video
    Object Segmentation" (DAVIS), 2016, with a square in place of the disk.

    Args:
      labels: integer [B, H, W], class ids.
      predictions: integer [B, H, W], class ids.
      tolerance: largest distance of matching pixels along either axis, in pixels.

    Returns:
      int64 [B, C, 4]: predicted, predicted and matched, true, true and matched.
    """
    predictions, labels = (tf.cast(ids, tf.uint8) for ids in (predictions, labels))  # int32 kernels run on the host
    known = valid & _same_as_neighbours(valid)
    outlines = [known & ~_same_as_neighbours(ids) for ids in (predictions, labels)]

    def counts_of(number: tf.Tensor) -> tf.Tensor:
        """Int64 [B, 4] for one class; maps of all classes at once would take too much memory for large images."""
        predicted, true = (
            outline & (ids == tf.cast(number, tf.uint8))
            for outline, ids in zip(outlines, (predictions, labels), strict=True)
        )
        near_predicted, near_true = (_dilated(outline, tolerance) for outline in (predicted, true))
        counted = (predicted, predicted & near_true, true, true & near_predicted)
        return tf.stack([_count_true(each) for each in counted], axis=-1)

    classes = tf.range(num_classes, dtype=tf.int64)  # for uint8, a GPU has no lists of tensors
    by_class = tf.map_fn(counts_of, classes, parallel_iterations=1, fn_output_signature=tf.int64)
    return tf.transpose(by_class, [1, 0, 2])


def _same_as_neighbours(ids: tf.Tensor) -> tf.Tensor:
    """Whether each pixel equals its four neighbours, ignoring those outside the image; bool [B, H, W]."""
    down, across = ids[:, 1:] == ids[:, :-1], ids[:, :, 1:] == ids[:, :, :-1]
    pads = [[0, 0], [1, 0], [0, 0]], [[0, 0], [0, 1], [0, 0]], [[0, 0], [0, 0], [1, 0]], [[0, 0], [0, 0], [0, 1]]
    above, below, left, right = (
        tf.pad(same, pad, constant_values=True) for same, pad in zip((down, down, across, across), pads, strict=True)
    )
    return above & below & left & right


def _dilated(marked: tf.Tensor, reach: int) -> tf.Tensor:
    """Dilates marked pixels by a square of `reach` pixels in each direction, bool [B, H, W], one axis at a time.

    Windows are built from windows of half their size, so the cost grows with log(reach).
    """
    for axis in (1, 2):
        pads = [[0, 0], [0, 0], [0, 0]]
        pads[axis] = [reach, reach]
        size, window = tf.shape(marked)[axis], 1
        marked = tf.pad(marked, pads)
        while 2 * window <= 2 * reach + 1:
            marked = _part(marked, axis, 0, -window) | _part(marked, axis, window, None)
            window *= 2
        last = 2 * reach + 1 - window
        marked = _part(marked, axis, 0, size) | _part(marked, axis, last, last + size)
    return marked


def _part(values: tf.Tensor, axis: int, begin: Any, end: Any) -> tf.Tensor:
    return values[:, begin:end] if axis == 1 else values[:, :, begin:end]


def _count_true(marked: tf.Tensor) -> tf.Tensor:
    """Number of marked pixels of each image, int64 [B]."""
    rows = tf.reduce_sum(tf.cast(marked, tf.float32), axis=2)  # exact: rows are shorter than 2**24
    return tf.reduce_sum(tf.cast(rows, tf.int64), axis=1)


def boundary_tolerance(height: int, width: int) -> int:
    """The tolerance of DAVIS in pixels: 0.8% of the diagonal, at least 1."""
    return max(1, round(0.008 * math.hypot(height, width)))


def boundary_f_scores(counts: np.ndarray) -> np.ndarray:
    """Boundary F scores, float64 [...], of counts [..., 4]; NaN if there are no boundaries."""
    predicted, predicted_matched, true, true_matched = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    precision, recall = ratio(predicted_matched, predicted), ratio(true_matched, true)
    missed = (predicted > 0) != (true > 0)  # only one of the two has a boundary: nothing matches
    precision, recall = np.where(missed, 0.0, precision), np.where(missed, 0.0, recall)
    return np.where(precision + recall == 0, 0.0, ratio(2 * precision * recall, precision + recall))


def calibration_counts(confidences: tf.Tensor, correct: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Histogram of pixels over the confidence, the probability of their predicted class.

    Args:
      confidences: float32 [B, H, W] in [0, 1].
      correct: bool [B, H, W].
      valid: bool [B, H, W], pixels to count.

    Returns:
      float64 [CALIBRATION_BINS, 3]: pixels, sum of confidences, correct pixels.
    """
    bins = tf.clip_by_value(tf.cast(confidences * CALIBRATION_BINS, tf.int64), 0, CALIBRATION_BINS - 1)
    bins = tf.reshape(tf.where(valid, bins, CALIBRATION_BINS), [-1])
    columns = tf.stack([tf.ones_like(confidences), confidences, tf.cast(correct, tf.float32)], axis=-1)
    columns = tf.cast(tf.reshape(columns, [-1, 3]), tf.float64)
    # Not `tf.math.bincount`, which has no kernel for float64 on GPUs.
    return tf.math.unsorted_segment_sum(columns, bins, CALIBRATION_BINS + 1)[:-1]


def calibration_error(counts: np.ndarray) -> float:
    """Expected calibration error: mean of |confidence - accuracy| over the bins, weighted by their pixels.

    After Guo et al., "On Calibration of Modern Neural Networks", 2017, with `CALIBRATION_BINS` equal bins.
    """
    pixels, confidence, correct = np.asarray(counts, np.float64).T
    return float(np.abs(confidence - correct).sum() / pixels.sum()) if pixels.sum() else float("nan")


def foreground_iou(matrix: np.ndarray, classes: Classes, *, without_borders: bool = False) -> float:
    """IoU of foreground against the rest, as in binary segmentation benchmarks.

    Args:
      matrix: int64 [C, C], rows true, columns predicted.
      classes: the C classes; those with a foreground fraction of at least 0.5, such as borders, count as foreground.
      without_borders: whether to leave out pixels whose true class is a border; a border predicted elsewhere still
        counts as foreground.
    """
    matrix, is_foreground = np.asarray(matrix, np.float64).copy(), classes.foreground >= 0.5
    if without_borders:
        matrix[classes.borders] = 0
    hit = matrix[np.ix_(is_foreground, is_foreground)].sum()
    return float(ratio(hit, matrix[is_foreground].sum() + matrix[:, is_foreground].sum() - hit))


def iou(matrices: np.ndarray) -> np.ndarray:
    """IoU of each class, float64 [..., C], of confusion matrices [..., C, C]; NaN for classes that do not occur."""
    return ratio(*intersections_and_unions(matrices))


def intersections_and_unions(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in the intersection and in the union of truth and prediction of each class; [..., C] each."""
    counts = np.asarray(matrices)
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    return hit, counts.sum(-1) + counts.sum(-2) - hit


def mean_iou(matrices: np.ndarray) -> np.ndarray:
    """Mean IoU over the classes that occur in truth or prediction, float64 [...], of matrices [..., C, C]."""
    return mean_over_classes(iou(matrices))


def mean_over_classes(scores: np.ndarray) -> np.ndarray:
    """Mean over the classes whose score is not NaN, float64 [...], of scores [..., C]."""
    occurs = ~np.isnan(scores)
    return ratio(np.where(occurs, scores, 0.0).sum(-1), occurs.sum(-1))


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray:
    """Elementwise quotient, float64; NaN where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0)
