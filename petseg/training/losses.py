"""Per-pixel losses, unreduced, their weighted sums, and the loss of overlap.

A loss leaves here as a sum, with what it is to be divided by as another sum; whoever knows the global batch divides
once.
"""

import dataclasses

import tensorflow as tf

from petseg.config import LossConfig

SMALLEST = 1e-7


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss of a batch, as two sums over its pixels.

    Attributes:
      pixel: how much cross-entropy or, with a `focal_gamma`, focal loss there is in it.
      dice: how much soft Dice loss. An example's counts once for each of its pixels, so one divisor does for both.
      focal_gamma: the gamma of `pixel_losses`; 0 for cross-entropy.
      label_smoothing: the label smoothing of `pixel_losses`.
      normalization: what it will be divided by: the number of valid "pixels", or the sum of their "weights".
    """

    pixel: float = 1.0
    dice: float = 0.0
    focal_gamma: float = 0.0
    label_smoothing: float = 0.0
    normalization: str = "pixels"

    def sums(
        self, labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor, valid: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The summed loss and its divisor, both float32 scalars.

        Args:
          labels: integer [B, H, W], class ids. A pixel that is in no class may hold any number.
          logits: float32 [B, H, W, C].
          weights: float32 [B, H, W]; 0 for a pixel that is in no class.
          valid: bool [B, H, W], whether it is in one.
        """
        counted = weights if self.normalization == "weights" else tf.cast(valid, tf.float32)
        total = tf.constant(0.0)
        if self.pixel:
            losses = pixel_losses(labels, logits, focal_gamma=self.focal_gamma, label_smoothing=self.label_smoothing)
            total += self.pixel * weighted_sum(losses, weights)
        if self.dice:
            of_examples = tf.reduce_sum(counted, axis=[1, 2])
            total += self.dice * tf.reduce_sum(of_examples * soft_dice(labels, logits, weights))
        return total, tf.reduce_sum(counted)


def make_loss(config: LossConfig) -> Loss:
    """The loss that flags describe."""
    return Loss(
        pixel=0.0 if config.loss == "dice" else 1.0,
        dice={"dice": 1.0, "cross_entropy_dice": config.dice_weight}.get(config.loss, 0.0),
        focal_gamma=config.focal_gamma if config.loss == "focal" else 0.0,
        label_smoothing=config.label_smoothing,
        normalization=config.loss_normalization,
    )


def pixel_losses(
    labels: tf.Tensor, logits: tf.Tensor, *, focal_gamma: float = 0.0, label_smoothing: float = 0.0
) -> tf.Tensor:
    """Cross-entropy or focal loss of each pixel: the sum over classes of target x (1 - p)^gamma x (-log p).

    Args:
      labels: integer [B, H, W], class ids. A pixel that is in no class may hold any number; its loss means nothing and
        must get weight 0.
      logits: float32 [B, H, W, C].
      focal_gamma: how much less a pixel counts that is right already (Lin et al. 2017); 0 for cross-entropy.
      label_smoothing: share of the target that is spread evenly over all classes (Szegedy et al. 2016).

    Returns:
      float32 [B, H, W], in nats.
    """
    classes = logits.shape[-1]
    in_range = tf.clip_by_value(tf.cast(labels, tf.int32), 0, classes - 1)
    if not focal_gamma and not label_smoothing:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(in_range, logits)
    targets = tf.one_hot(in_range, classes) * (1 - label_smoothing) + label_smoothing / classes
    log_probabilities = tf.nn.log_softmax(logits)
    losses = -targets * log_probabilities
    if focal_gamma:
        # Above 0, where the power of an exponent below 1 has no derivative.
        losses *= tf.maximum(-tf.math.expm1(log_probabilities), SMALLEST) ** focal_gamma
    return tf.reduce_sum(losses, axis=-1)


def soft_dice(labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """1 - the Dice score of probabilities, mean over the classes, for each example (Milletari et al. 2016).

    The score of a class is (2 sum(w p t) + 1) / (sum(w p) + sum(w t) + 1), with probabilities p, targets t and weights
    w; the 1 makes it 1 for a class that neither occurs nor is predicted.

    Args:
      labels: integer [B, H, W], class ids. A pixel that is in no class may hold any number.
      logits: float32 [B, H, W, C].
      weights: float32 [B, H, W].

    Returns:
      float32 [B].
    """
    in_range = tf.clip_by_value(tf.cast(labels, tf.int32), 0, logits.shape[-1] - 1)
    targets, weights = tf.one_hot(in_range, logits.shape[-1]), weights[..., None]
    probabilities = tf.math.multiply_no_nan(tf.nn.softmax(logits), weights)
    common = tf.reduce_sum(probabilities * targets, axis=[1, 2])
    both = tf.reduce_sum(probabilities + weights * targets, axis=[1, 2])
    return 1 - tf.reduce_mean((2 * common + 1) / (both + 1), axis=-1)


def weighted_sum(losses: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Sum of weight x loss, both float32 [B, H, W]; weight 0 silences even an infinite loss."""
    return tf.reduce_sum(tf.math.multiply_no_nan(losses, weights))
