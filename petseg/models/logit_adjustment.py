"""Post-hoc logit adjustment (Menon et al. 2021): undoes what class weights of the loss did to the probabilities."""

from collections.abc import Sequence

import keras
import numpy as np

from petseg.errors import ConfigError

LAYER = "logits"  # the last layer with weights in each decoder


def adjust_logits(model: keras.Model, class_weights: Sequence[float]) -> None:
    """Subtracts the logarithm of each class's weight from the bias of its logit.

    A cross-entropy with class weights w is lowest where the probabilities are proportional to w times those of the
    data. A class of weight 0, which is never learned, keeps its logit.

    Raises ConfigError if the network has no layer of logits with a bias.
    """
    layer = next((layer for layer in model.layers if layer.name == LAYER), None)
    bias = getattr(layer, "bias", None)
    if bias is None or bias.shape[0] % len(class_weights):
        raise ConfigError(f"--logit_adjustment: the network must have a layer named {LAYER!r} with a bias per class")
    weights = np.asarray(class_weights)
    shift = np.log(np.where(weights > 0, weights, 1.0))
    bias.assign(bias.numpy() - np.tile(shift, bias.shape[0] // len(weights)))  # several pixels by channels: class last
