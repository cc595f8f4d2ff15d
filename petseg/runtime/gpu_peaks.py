"""Peak speeds of common GPUs, for the share of them that a training reaches."""

import re
from typing import NamedTuple

import tensorflow as tf

from petseg.config import Config


class Peak(NamedTuple):
    """Peak of a GPU in TFLOP/s, dense, from its data sheet; None where it has no such units."""

    float32: float  # float32 without TensorFloat-32
    tensor_float_32: float | None  # float32 with TensorFloat-32
    float16: float  # float16 with sums in float32
    bfloat16: bool = True  # True if bfloat16 is as fast


# By words of the device's name, the more specific before the less.
PEAKS = {
    "H100 PCIe": Peak(51, 378, 756),
    "H100 NVL": Peak(60, 418, 835),
    "H100": Peak(67, 495, 989),
    "H200": Peak(67, 495, 989),
    "GH200": Peak(67, 495, 989),
    "A100": Peak(19.5, 156, 312),
    "A30": Peak(10.3, 82, 165),
    "A40": Peak(37.4, 75, 150),
    "A10G": Peak(35, 35, 70),
    "A10": Peak(31.2, 62.5, 125),
    "L40S": Peak(91.6, 183, 362),
    "L40": Peak(90.5, 90.5, 181),
    "L4": Peak(30.3, 60, 121),
    "RTX 6000 Ada": Peak(91.1, 182, 364),
    "RTX A6000": Peak(38.7, 77, 155),
    "RTX A5000": Peak(27.8, 56, 111),
    "RTX 4090": Peak(82.6, 82.6, 165),
    "RTX 4080": Peak(48.7, 48.7, 97.5),
    "RTX 3090": Peak(35.6, 35.6, 71),
    "RTX 3080": Peak(29.8, 29.8, 59.5),
    "RTX 2080 Ti": Peak(13.4, None, 53.8, False),
    "V100-PCIE": Peak(14, None, 112, False),
    "V100": Peak(15.7, None, 125, False),
    "T4": Peak(8.1, None, 65, False),
    "P100": Peak(10.6, None, 21.2, False),
}


def peak_tflops(device_name: str, precision: str, tensor_float_32: bool) -> float:
    """Peak of a GPU at a --precision in TFLOP/s; 0 if it is unknown, as for a part of a GPU (MIG)."""
    for words, peak in PEAKS.items():
        if re.search(rf"\b{words}\b(?! (Ti|SUPER|D|Laptop))", device_name) and "MIG" not in device_name:
            if precision == "mixed_float16":
                return peak.float16
            if precision == "mixed_bfloat16":
                return peak.float16 if peak.bfloat16 else 0.0
            return (peak.tensor_float_32 if tensor_float_32 else None) or peak.float32
    return 0.0


def peak_of_visible_devices(config: Config) -> float:
    """Peak of all visible GPUs of this process in TFLOP/s; --peak_tflops for each, if given; 0 if it is unknown."""
    gpus = tf.config.get_visible_devices("GPU")
    if config.compute.peak_tflops:
        return config.compute.peak_tflops * max(len(gpus), 1)
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", "") for gpu in gpus]
    peaks = [peak_tflops(name, config.compute.precision, config.uses_tensor_float_32) for name in names]
    return sum(peaks) if all(peaks) else 0.0
