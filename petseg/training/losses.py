"""Per-pixel losses and soft Dice loss, returned as sums.

A loss is a numerator and a denominator, never a mean: the trainer divides once, after the all-reduce.
"""

import tensorflow as tf

from petseg import custom_code
from petseg.classes import IGNORED
from petseg.config import LossConfig
from petseg.errors import ConfigError

SMALLEST = 1e-7


class Loss:
    """The loss function of a config: a built-in one, or user code (--loss=FILE.py:function).

    The user's function gets labels int64 [B, H, W], class ids that are 0 at ignored pixels; logits float32
    [B, H, W, C]; and pixel weights float32 [B, H, W], 0 at ignored pixels. It returns one of

    - float32 [B, H, W]: a loss per pixel, which is multiplied by the weights and normalised like cross-entropy;
    - float32 [B]: a loss per image, which counts once for each of the image's pixels, like Dice;
    - a pair of float32 scalars: a sum over the batch and its denominator, both of which are summed over replicas.
    """

    def __init__(self, config: LossConfig):
        self.config = config
        is_code = custom_code.is_reference(config.loss)
        self._code = custom_code.load("loss", config.loss) if is_code else None  # now, not where a graph is traced

    def sums(
        self, labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor, valid: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The summed loss of a batch and its denominator, both float32 scalars.

        Args:
          labels: integer [B, H, W], class ids; any number at ignored pixels.
          logits: float32 [B, H, W, C].
          weights: float32 [B, H, W], pixel weights; 0 at ignored pixels.
        """
        config, total = self.config, tf.constant(0.0)
        counted = weights if config.loss_normalization == "weights" else tf.cast(valid, tf.float32)
        if self._code is not None:
            return self._sums_of_code(labels, logits, weights, counted)
        if config.loss != "dice":
            gamma = config.focal_gamma if config.loss == "focal" else 0.0
            losses = pixel_losses(labels, logits, focal_gamma=gamma, label_smoothing=config.label_smoothing)
            total += weighted_sum(losses, weights)
        dice_weight = {"dice": 1.0, "cross_entropy_dice": config.dice_weight}.get(config.loss, 0.0)
        if dice_weight:
            # An image counts once for each of its counted pixels, so that both losses share one denominator.
            pixels_of_images = tf.reduce_sum(counted, axis=[1, 2])
            total += dice_weight * tf.reduce_sum(pixels_of_images * soft_dice(labels, logits, weights))
        return total, tf.reduce_sum(counted)

    def check(self, num_classes: int, image_size: tuple[int, int]) -> None:
        """Calls a user-defined loss on dummy data, before any step.

        Raises ConfigError if it cannot be imported, fails, or returns something else than `Loss` describes.
        """
        if self._code is None:
            return
        masks = tf.random.stateless_uniform([2, *image_size], [0, 0], 0, num_classes, tf.int32)
        masks = tf.tensor_scatter_nd_update(masks, [[0, 0, 0]], [IGNORED])
        valid, where = masks != IGNORED, f"--loss={self.config.loss}"
        logits = tf.random.stateless_normal([2, *image_size, num_classes], [0, 1])

        @tf.function(autograph=False)  # as in training: a graph, whose values are not known while it is made
        def gradient() -> tuple[tf.Tensor, tf.Tensor | None]:
            with tf.GradientTape() as tape:
                tape.watch(logits)
                loss, denominator = self.sums(masks, logits, tf.cast(valid, tf.float32), valid)
            return tf.stack([loss, denominator]), tape.gradient(loss, logits)

        with custom_code.explained("loss", self.config.loss):
            sums, slope = gradient()
        if slope is None:
            raise ConfigError(f"{where}: its result does not depend on the logits; must have a gradient")
        if not tf.reduce_all(tf.math.is_finite(sums)) or not tf.reduce_all(tf.math.is_finite(slope)) or sums[1] < 0:
            raise ConfigError(
                f"{where}: for random logits, its sum and denominator are {sums.numpy().tolist()}, its largest "
                f"gradient {tf.reduce_max(tf.abs(slope)):g}; all must be finite, the denominator at least 0"
            )

    def _sums_of_code(
        self, labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor, counted: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        assert self._code is not None
        labels = tf.cast(labels, tf.int64)
        made = self._code(tf.where(labels < logits.shape[-1], labels, 0), logits, weights)
        if isinstance(made, tuple) and len(made) == 2:
            loss, denominator = map(tf.convert_to_tensor, made)
            if all(part.dtype == tf.float32 and part.shape == [] for part in (loss, denominator)):
                return loss, denominator
        elif tf.is_tensor(made) and made.dtype == tf.float32:
            if made.shape.rank == 3 and made.shape.is_compatible_with(weights.shape):
                return weighted_sum(made, weights), tf.reduce_sum(counted)
            if made.shape.rank == 1 and made.shape.is_compatible_with(weights.shape[:1]):
                return tf.reduce_sum(tf.reduce_sum(counted, axis=[1, 2]) * made), tf.reduce_sum(counted)
        raise ConfigError(
            f"--loss={self.config.loss}: returned {custom_code.described(made)}; must be float32 [B, H, W] (per "
            "pixel), float32 [B] (per image), or a pair of float32 scalars, a sum and its denominator"
        )


def pixel_losses(
    labels: tf.Tensor, logits: tf.Tensor, *, focal_gamma: float = 0.0, label_smoothing: float = 0.0
) -> tf.Tensor:
    """Cross-entropy or focal loss of each pixel: the sum over classes of target x (1 - p)^gamma x (-log p).

    Args:
      labels: integer [B, H, W], class ids. Ignored pixels may hold any number; their losses must get weight 0.
      logits: float32 [B, H, W, C].
      focal_gamma: exponent of the focal loss (Lin et al. 2017); 0 for cross-entropy.
      label_smoothing: fraction of the target that is spread evenly over all classes (Szegedy et al. 2016).

    Returns:
      float32 [B, H, W], in nats.
    """
    classes = logits.shape[-1]
    in_range = _class_ids(labels, classes)
    if not focal_gamma and not label_smoothing:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(in_range, logits)
    targets = tf.one_hot(in_range, classes) * (1 - label_smoothing) + label_smoothing / classes
    log_probabilities = tf.nn.log_softmax(logits)
    losses = -targets * log_probabilities
    if focal_gamma:
        # Kept above 0, where a power below 1 has no finite derivative.
        losses *= tf.maximum(-tf.math.expm1(log_probabilities), SMALLEST) ** focal_gamma
    return tf.reduce_sum(losses, axis=-1)


def soft_dice(labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Soft Dice loss of each image: 1 - the mean over classes of their Dice scores (Milletari et al. 2016).

    The score of a class is (2 sum(w p t) + 1) / (sum(w p) + sum(w t) + 1), with probabilities p, targets t and weights
    w; the 1 makes it 1 for a class that neither occurs nor is predicted.

    Args:
      labels: integer [B, H, W], class ids; any number at ignored pixels.
      logits: float32 [B, H, W, C].
      weights: float32 [B, H, W], pixel weights; 0 at ignored pixels.

    Returns:
      float32 [B].
    """
    targets, weights = tf.one_hot(_class_ids(labels, logits.shape[-1]), logits.shape[-1]), weights[..., None]
    probabilities = tf.math.multiply_no_nan(tf.nn.softmax(logits), weights)
    intersection = tf.reduce_sum(probabilities * targets, axis=[1, 2])
    areas = tf.reduce_sum(probabilities + weights * targets, axis=[1, 2])
    return 1 - tf.reduce_mean((2 * intersection + 1) / (areas + 1), axis=-1)


def _class_ids(labels: tf.Tensor, classes: int) -> tf.Tensor:
    """Labels in 0 .. classes - 1, whatever ignored pixels hold; int64, because a GPU computes int32 on the host."""
    return tf.clip_by_value(tf.cast(labels, tf.int64), 0, classes - 1)


def weighted_sum(losses: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Sum of weight x loss, both float32 [B, H, W]; 0 where the weight is 0, even if the loss is infinite."""
    return tf.reduce_sum(tf.math.multiply_no_nan(losses, weights))
