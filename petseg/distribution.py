"""--strategy -> tf.distribute.Strategy."""

import tensorflow as tf


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of a name.

    Args:
      name: "one_device" (the first GPU, else the CPU), "mirrored" (all GPUs, else the CPU), or "auto": mirrored where
        several GPUs are visible, else one_device.

    Raises:
      ValueError: if there is no strategy of that name.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if name == "auto":
        name = "mirrored" if len(gpus) > 1 else "one_device"
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(gpus[0].name if gpus else "/cpu:0")
    raise ValueError(f"no strategy {name!r}; there are 'auto', 'one_device' and 'mirrored'")
