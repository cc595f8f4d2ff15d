"""Convolutions with gradients that are faster on CPUs.

Values and gradients equal TensorFlow's up to the order of additions.
"""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from petseg.runtime import strategies

NARROW = 4  # a convolution is narrow if NARROW * output channels <= input channels


def faster_here() -> bool:
    """Whether training uses this module and `folded_norms` instead of Keras's layers, because they are faster here.

    On CPUs a step takes 0.8 of the time (docs/measurements/networks.md); on GPUs they were never measured.
    """
    return strategies.computing_kind() == "CPU"


def pointwise(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """A 1x1 convolution as a matrix product, whose gradients are up to 1.7 times as fast as a convolution's.

    Args:
      x: [B, H, W, C].
      kernel: [1, 1, C, D].

    Returns:
      [B, H, W, D].
    """
    channels, filters = kernel.shape[2:]
    product = tf.matmul(tf.reshape(x, [-1, channels]), tf.reshape(kernel, [channels, filters]))
    return tf.reshape(product, [-1, *x.shape[1:3], filters])


@tf.custom_gradient
def same_size(x: tf.Tensor, kernel: tf.Tensor) -> Any:
    """A convolution with an odd kernel size, stride 1 and padding "same".

    Its input gradient is a forward convolution with the flipped kernel, 1.2 to 2 times as fast as the native operation.
    The kernel gradient of a narrow convolution is a matrix product with shifted output gradients, twice as fast.

    Args:
      x: [B, H, W, C].
      kernel: [K, K, C, D].
    """

    def gradients(of_outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        flipped = tf.transpose(kernel[::-1, ::-1], [0, 1, 3, 2])
        return tf.nn.conv2d(of_outputs, flipped, 1, "SAME"), _kernel_gradient(x, kernel.shape, of_outputs)

    return tf.nn.conv2d(x, kernel, 1, "SAME"), gradients


def _kernel_gradient(x: tf.Tensor, shape: tf.TensorShape, of_outputs: tf.Tensor) -> tf.Tensor:
    size, _, channels, filters = shape
    if NARROW * filters > channels:
        return tf.raw_ops.Conv2DBackpropFilter(
            input=x, filter_sizes=list(shape), out_backprop=of_outputs, strides=[1, 1, 1, 1], padding="SAME"
        )
    pixels = x.shape[1] * x.shape[2]
    shifted = tf.reshape(tf.concat(list(_shifted(of_outputs, size)), -1), [-1, pixels, size**2 * filters])
    products = tf.matmul(tf.reshape(x, [-1, pixels, channels]), shifted, transpose_a=True)
    of_kernel = tf.reshape(tf.reduce_sum(products, 0), [channels, size, size, filters])
    return tf.transpose(of_kernel[:, ::-1, ::-1], [1, 2, 0, 3])


def _shifted(x: tf.Tensor, size: int) -> Iterator[tf.Tensor]:
    """The zero-padded map, shifted to each position of the kernel in turn."""
    height, width = x.shape[1:3]
    padded = tf.pad(x, [[0, 0], [size // 2] * 2, [size // 2] * 2, [0, 0]])
    for row in range(size):
        for column in range(size):
            yield padded[:, row : row + height, column : column + width]
