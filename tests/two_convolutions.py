"""The smallest network with convolutions and a batch norm, for tests in which any network will do."""

import keras


def build(image_size, num_classes, channels):
    images = keras.Input([*image_size, channels])
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="convolution")(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="batch_norm")(x))
    logits = keras.layers.Conv2DTranspose(num_classes, 3, strides=2, padding="same", dtype="float32", name="logits")(x)
    return keras.Model(images, logits)


def synchronized(size):
    """The same for square images and three classes, with batch norms over all replicas, as `make_trainer` takes it."""
    model = build((size, size), 3, 3)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
    return model
