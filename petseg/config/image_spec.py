"""Format of a run's images: channels, pixel dtype of the files, intensity range."""

import dataclasses
from typing import Any

import numpy as np

from petseg.config import options

DTYPES = ("uint8", "uint16", "float32")
MOST_CHANNELS = 32
GREY = 128  # padding of 8-bit images; near ImageNet's mean colour, it makes weaker edges than black
CODES = 65535.0  # largest code of a float


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Channels, dtype and intensity range of the images of a run.

    Transport format, in caches, batches and exports: 8-bit and 16-bit files as uint8 and uint16; floats and 32-bit
    integers as uint16 codes, 0 at `low` and 65535 at `high`. The device scales `low` to 0 and `high` to 255, and clips.
    """

    channels: int = 3  # number of channels C
    dtype: str = "uint8"  # pixel dtype of the files, one of DTYPES; 32-bit integers count as float32
    low: tuple[float, ...] = (0.0,)  # value that is scaled to 0: one for all channels, or one for each
    high: tuple[float, ...] = (255.0,)  # value that is scaled to 255
    # channels that figures show as red, green and blue, or as grey; empty: the first three
    shown_channels: tuple[int, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether images are 8-bit and need no scaling."""
        return self.dtype == "uint8" and self.low == (0.0,) and self.high == (255.0,)

    @property
    def travels_as(self) -> str:
        """Dtype of the transport format: uint8 or uint16."""
        return "uint8" if self.dtype == "uint8" else "uint16"

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes of a pixel of an image and of its mask, in transport format."""
        return self.channels * np.dtype(self.travels_as).itemsize + 1

    @property
    def device_range(self) -> tuple[np.ndarray, np.ndarray]:
        """`low` and `high` in the transport format, float32 [1 or C] each."""
        low, high = ((0.0,), (CODES,)) if self.dtype == "float32" else (self.low, self.high)
        return np.array(low, np.float32), np.array(high, np.float32)

    @property
    def padding(self) -> tuple[int, ...]:
        """Grey in the transport format, the middle of the range: one number, or one for each channel."""
        if self.is_plain:
            return (GREY,)
        low, high = self.device_range
        middle = np.clip(np.round((low + high) / 2), 0, np.iinfo(self.travels_as).max)
        numbers = middle.astype(int).tolist()
        return tuple(numbers[:1] if len(set(numbers)) == 1 else numbers)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of a file, [..., C] of `dtype`, in transport format; values must be finite."""
        if self.dtype != "float32":
            return pixels.astype(self.travels_as, copy=False)
        low, high = np.array(self.low, np.float32), np.array(self.high, np.float32)
        share = np.clip((pixels.astype(np.float32) - low) / (high - low), 0, 1)
        return np.round(share * np.float32(CODES)).astype(np.uint16)

    def shown(self, images: np.ndarray) -> np.ndarray:
        """Images for display, uint8 [..., 3], of images in transport format or of floats in [0, 255], [..., C]."""
        if images.dtype == np.uint8 and self.is_plain and self.channels == 3 and not self.shown_channels:
            return images
        chosen = self.shown_channels or tuple(range(min(self.channels, 3)))
        chosen = (*chosen, *chosen[-1:] * 2)[:3]  # one is shown as grey, of two the second counts twice
        picked = images[..., list(chosen)].astype(np.float32)
        if images.dtype.kind != "f":
            low, high = (np.broadcast_to(value, self.channels)[list(chosen)] for value in self.device_range)
            picked = (picked - low) * (255 / (high - low))
        return np.clip(np.round(picked), 0, 255).astype(np.uint8)

    def describe(self) -> dict[str, Any]:
        """The entries of a model card on the input's numbers."""
        low, high = self.device_range
        entry: dict[str, Any] = {"dtype": self.travels_as, "range": [_short(low), _short(high)]}
        if self.dtype == "float32":
            entry["codes"] = f"round(65535 * (value - low) / (high - low)), clipped; low {self.low}, high {self.high}"
        return entry


PLAIN = ImageSpec()  # 8-bit RGB


def _short(values: np.ndarray) -> float | list[float]:
    numbers = [int(value) if value == int(value) else float(value) for value in values.tolist()]
    return numbers[0] if len(numbers) == 1 else numbers


def parse_range(text: str, channels: int = 0) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Low and high of `LOW,HIGH` or of such a pair for each channel; None if the text is neither."""
    found = options.numbers(text)
    low, high = found[::2], found[1::2]
    fits = len(low) == len(high) and len(low) in ((1, channels) if channels else range(1, MOST_CHANNELS + 1))
    return (low, high) if fits and all(a < b for a, b in zip(low, high, strict=True)) else None


def range_text(low: tuple[float, ...], high: tuple[float, ...]) -> str:
    """The inverse of `parse_range`."""
    return ",".join(f"{value:.9g}" for pair in zip(low, high, strict=True) for value in pair)
