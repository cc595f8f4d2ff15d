"""An auxiliary edge loss (Gated-SCNN, Takikawa et al. 2019): a head that finds edges, which the classes also use.

    python train.py --decoder=examples/edge_head.py:decoder --step=examples/edge_head.py:EdgeHead

The head is a layer of the network, so checkpoints, averaged weights and exports hold it; the step reads its output.
"""

import keras
import tensorflow as tf

from petseg.models import decoders
from petseg.training.trainer import Trainer

WEIGHT = 1.0


def decoder(taps, batch_norm):
    """Features of petseg's light decoder and the probability of an edge, at half of the image size."""
    features = decoders.decode("light", taps, batch_norm)
    edges = keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid", dtype="float32", name="edges")(features)
    return keras.layers.Concatenate()([features, edges])


class EdgeHead(Trainer):
    """Adds the cross-entropy of the edges between classes."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        outputs = [self.model.output, self.model.get_layer("edges").output]
        self._both = keras.Model(self.model.inputs, outputs)  # shares all layers with the network

    def forward(self, images, masks, weights, valid):
        logits, found = self._both(images, training=True)
        loss, denominator = self.loss.sums(masks[..., 0], logits, weights, valid)
        size = found.shape[1:3]
        masks = tf.cast(tf.image.resize(masks, size, "nearest"), tf.float32)
        weights = tf.image.resize(weights[..., None], size, "nearest")
        is_edge = tf.nn.max_pool2d(masks, 3, 1, "SAME") != -tf.nn.max_pool2d(-masks, 3, 1, "SAME")
        losses = keras.ops.binary_crossentropy(tf.cast(is_edge, tf.float32), found) * weights
        pixels = images.shape[1] * images.shape[2] / (size[0] * size[1])  # of the image for each of the edges
        return logits, loss + WEIGHT * pixels * tf.reduce_sum(losses), denominator
