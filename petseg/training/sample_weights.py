"""Pixel weights: class weights, boundary weights, weight maps of the data and ignored pixels.

A `WeightMap` multiplies the loss of each pixel; --weight_map multiplies a user-defined factor into it.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from petseg import custom_code
from petseg.classes import IGNORED
from petseg.config import LossConfig
from petseg.config.data_config import WEIGHT_SCALES
from petseg.errors import ConfigError

logger = logging.getLogger(__name__)
WeightMap = Callable[..., tf.Tensor]


def weight_map(config: LossConfig, class_weights: Sequence[float] | None = None, own_factor: str = "") -> WeightMap:
    """The weight map of a config: class weights plus boundary weights, times a factor; 0 at ignored pixels.

    Returns:
      a function of masks, uint8 [B, H, W, 1], class ids or IGNORED, and of the weight maps of `given`, which it
      multiplies in, to float32 [B, H, W].
    """

    factor = custom_code.load("weight_map", own_factor) if own_factor else None

    def weights_of(masks: tf.Tensor, *maps: tf.Tensor) -> tf.Tensor:
        weights = valid = tf.cast(valid_pixels(masks), tf.float32)
        if class_weights is not None:
            ids = tf.minimum(tf.cast(masks[..., 0], tf.int64), len(class_weights) - 1)  # a GPU has no int32 arithmetic
            weights = tf.gather(tf.constant(class_weights, tf.float32), ids) * valid
        if config.boundary_weight:
            weights += config.boundary_weight * near_boundaries(masks, config.boundary_sigma) * valid
        if factor is not None:
            weights = tf.math.multiply_no_nan(factor(masks), weights)
        for one in maps:
            weights *= one[..., 0]
        return weights

    return weights_of


def given(batch: Mapping[str, tf.Tensor], scale: float) -> list[tf.Tensor]:
    """The weight maps that come with the examples of a batch: none, or one, float32 [B, H, W, 1].

    Args:
      batch: from `input_pipeline`.
      scale: value of --weight_scale: the number that becomes 1; 0: that of WEIGHT_SCALES.
    """
    if "weight" not in batch:
        return []
    stored = batch["weight"]
    # A quotient, not a product with the reciprocal, so that `scale` becomes exactly 1.
    return [tf.cast(stored, tf.float32) / (scale or WEIGHT_SCALES[stored.dtype.name])]


def check_factor(own_factor: str, num_classes: int, image_size: tuple[int, int]) -> None:
    """Calls the function of --weight_map on a dummy mask.

    Raises ConfigError if it cannot be imported, fails, or does not return finite float32 [B, H, W] of at least 0.
    """
    if not own_factor:
        return
    masks = tf.random.stateless_uniform([2, *image_size, 1], [0, 0], 0, num_classes, tf.int32)
    masks = tf.cast(tf.tensor_scatter_nd_update(masks, [[0, 0, 0, 0]], [IGNORED]), tf.uint8)
    factor = tf.function(custom_code.load("weight_map", own_factor), autograph=False)  # a graph, as in training
    with custom_code.explained("weight_map", own_factor):
        made = factor(masks)
    if not tf.is_tensor(made) or made.dtype != tf.float32 or made.shape != masks.shape[:3]:
        found = custom_code.described(made)
        raise ConfigError(f"--weight_map={own_factor}: returned {found}; must be float32 {masks.shape.as_list()[:3]}")
    if not tf.reduce_all(tf.math.is_finite(made) & (made >= 0)):
        raise ConfigError(f"--weight_map={own_factor}: returned weights below 0 or not finite; must be at least 0")


def valid_pixels(masks: tf.Tensor) -> tf.Tensor:
    """The pixels of masks, uint8 [B, H, W, 1], that are not ignored: bool [B, H, W]."""
    return masks[..., 0] != IGNORED


def near_boundaries(masks: tf.Tensor, sigma: float) -> tf.Tensor:
    """Boundary weights exp(-d^2 / (2 sigma^2)), with the distance d to the nearest pixel that touches another class.

    Follows equation 2 of the U-Net paper (Ronneberger et al. 2015) with one distance instead of those to two cells; 0
    beyond 3 sigma. The squared distance transform is separable (Felzenszwalb and Huttenlocher 2012): grey-scale
    erosions by a parabola along rows, then along columns. Returns float32 [B, H, W].
    """
    reach = int(np.ceil(3 * sigma))
    far = float(2 * reach**2 + 1)
    parabola = tf.constant(-(np.arange(-reach, reach + 1, dtype=np.float32) ** 2))
    squared = tf.where(_touches_another_class(masks), 0.0, far)
    for kernel in (parabola[:, None, None], parabola[None, :, None]):
        squared = -tf.nn.dilation2d(-squared, kernel, [1, 1, 1, 1], "SAME", "NHWC", [1, 1, 1, 1])
    squared = squared[..., 0]
    return tf.where(squared > (3 * sigma) ** 2, 0.0, tf.exp(-squared / (2 * sigma**2)))


def _touches_another_class(masks: tf.Tensor) -> tf.Tensor:
    """bool [B, H, W, 1]: pixels with one of their four neighbours in another class."""
    valid = masks != IGNORED
    differs_below = (masks[:, 1:] != masks[:, :-1]) & valid[:, 1:] & valid[:, :-1]
    differs_right = (masks[:, :, 1:] != masks[:, :, :-1]) & valid[:, :, 1:] & valid[:, :, :-1]
    return (
        tf.pad(differs_below, [[0, 0], [0, 1], [0, 0], [0, 0]])
        | tf.pad(differs_below, [[0, 0], [1, 0], [0, 0], [0, 0]])
        | tf.pad(differs_right, [[0, 0], [0, 0], [0, 1], [0, 0]])
        | tf.pad(differs_right, [[0, 0], [0, 0], [1, 0], [0, 0]])
    )


def resolve_class_weights(
    config: LossConfig, masks: Callable[[], Iterable[np.ndarray]], class_names: Sequence[str]
) -> tuple[float, ...] | None:
    """The normalised class weights of --class_weights; None if there are none.

    Args:
      masks: a function that returns the masks of the training split in batches, uint8 [k, H, W, 1]; called only if
        frequencies are needed.

    Raises:
      ConfigError: if the number of weights is not the number of classes.
    """
    weights = config.class_weight_values()
    if weights and len(weights) != len(class_names):
        raise ConfigError(
            f"--class_weights={config.class_weights}: there are {len(weights)}; must be {len(class_names)}, of "
            + ", ".join(class_names)
        )
    normalization = config.class_weight_normalization or "mean"
    counted = {"balanced": balanced, "median_frequency": median_frequency}
    if config.class_weights in counted:
        found = counted[config.class_weights](masks(), len(class_names), normalization)
    elif weights is not None:
        found = normalized(weights, normalization)
    else:
        return None
    shown = ", ".join(f"{name} {weight:.3f}" for name, weight in zip(class_names, found, strict=True))
    logger.info("class weights: %s", shown)
    return found


def normalized(class_weights: Sequence[float], normalization: str = "mean") -> tuple[float, ...]:
    """Weights scaled to a mean of 1 over the classes, or with the normalization "sum" to a sum of 1."""
    total, target = sum(class_weights), len(class_weights) if normalization == "mean" else 1
    return tuple(target * weight / total for weight in class_weights)


def balanced(masks: Iterable[np.ndarray], num_classes: int, normalization: str = "mean") -> tuple[float, ...]:
    """Class-balanced weights: inverse frequencies of the classes' pixels.

    Returns C weights; 0 for a class with no pixels.
    """
    counts, _ = _pixels_of_images(masks, num_classes)
    return normalized(_inverse(counts.sum(axis=0).astype(np.float64)), normalization)


def median_frequency(masks: Iterable[np.ndarray], num_classes: int, normalization: str = "mean") -> tuple[float, ...]:
    """Inverse frequencies of the classes' pixels, counted in the images in which a class occurs.

    Median-frequency balancing (Eigen and Fergus 2015); the median itself cancels out in the normalisation. Returns C
    weights; 0 for a class with no pixels.
    """
    counts, sizes = _pixels_of_images(masks, num_classes)
    pixels = np.where(counts > 0, sizes[:, None], 0).sum(axis=0)
    frequencies = np.divide(counts.sum(axis=0), pixels, out=np.zeros(num_classes), where=pixels > 0)
    return normalized(_inverse(frequencies), normalization)


def _pixels_of_images(masks: Iterable[np.ndarray], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each image by class, int64 [N, C], and its valid pixels, int64 [N]."""
    counts, sizes = [], []
    for of_images in masks:  # in batches, because the split may be larger than memory
        of_images = of_images.reshape(len(of_images), -1)
        counts.append(np.stack([(of_images == label).sum(axis=1) for label in range(num_classes)], axis=1))
        sizes.append((of_images != IGNORED).sum(axis=1))
    return np.concatenate(counts), np.concatenate(sizes)


def _inverse(frequencies: np.ndarray) -> list[float]:
    if not frequencies.any():
        raise ConfigError("--class_weights: no pixel of the training masks is in a class; must be given as numbers")
    return np.divide(1.0, frequencies, out=np.zeros_like(frequencies), where=frequencies > 0).tolist()
