"""What the demo page says and shows of a picture, without the page."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib
import numpy as np
from PIL import Image

from petseg.classes import Classes
from petseg.config import Config
from petseg.deployment.photographs import read_image
from petseg.errors import DataError, PetsegError

if TYPE_CHECKING:
    from petseg.deployment.segmentation import Segmentation

MOST_OUTLINED = 1_000_000  # pixels of the picture of classes, which is sent as one picture for each class
CONFIDENCE_COLORS = "viridis"


class Pictures(NamedTuple):
    """What the page shows of a segmentation, in the order of its outputs; None where there is nothing to show."""

    overlay: Image.Image | None
    annotated: tuple[np.ndarray, list[tuple[np.ndarray, str]]] | None
    confidence: Image.Image | None
    cutout: Image.Image | None


def read(path: Path) -> np.ndarray:
    """An uploaded picture, uint8 [H, W, 3].

    Raises:
      DataError: if it is none; says so without the path that it has on this machine.
    """
    try:
        return read_image(path)
    except PetsegError as error:
        reason = str(error).removeprefix(f"{path}: ").replace(str(path), path.name)
        raise DataError(f"{path.name}: {reason}") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        reason = " ".join(str(error).split()).replace(str(path), path.name) or type(error).__name__
        raise DataError(f"{path.name}: cannot be read: {reason}") from error


def reduced(image: np.ndarray, most_pixels: int) -> np.ndarray:
    """A picture uint8 [H, W, 3], made smaller if it has too many pixels."""
    height, width = image.shape[:2]
    shrink = (most_pixels / (height * width)) ** 0.5
    if shrink >= 1:
        return image
    size = (max(1, int(width * shrink)), max(1, int(height * shrink)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0))


def pictures(segmentation: "Segmentation", opacity: float) -> Pictures:
    """What is shown of a segmentation."""
    has_foreground = bool(segmentation.classes.foreground.any())
    return Pictures(
        segmentation.overlay(opacity),
        annotations(segmentation),
        confidence_picture(segmentation.confidence, len(segmentation.classes)),
        segmentation.cutout() if has_foreground else None,
    )


def annotations(segmentation: "Segmentation") -> tuple[np.ndarray, list[tuple[np.ndarray, str]]]:
    """The picture, and for each class that is in it where it is, float [H, W] of 0 and 1, and its name."""
    image = reduced(segmentation.image, MOST_OUTLINED)
    size = (image.shape[1], image.shape[0])
    mask = np.asarray(Image.fromarray(segmentation.mask).resize(size, Image.Resampling.NEAREST))
    names = segmentation.classes.names
    return image, [((mask == i).astype(np.float32), names[i]) for i in np.unique(mask)]


def confidence_picture(confidence: np.ndarray, num_classes: int) -> Image.Image:
    """The probability of the most probable class, from float16 [H, W]: dark where all classes are as probable."""
    least = 1 / num_classes
    share = (confidence.astype(np.float32) - least) / (1 - least)
    return Image.fromarray(_ramp()[(share * 255).clip(0, 255).round().astype(np.uint8)])


def confidence_scale(num_classes: int) -> str:
    """What the colours of the confidence mean, as HTML."""
    colors = ", ".join(f"rgb({r}, {g}, {b})" for r, g, b in _ramp()[::32])
    return (
        f'<div class="petseg-scale" style="background: linear-gradient(to right, {colors})"></div>'
        f'<div class="petseg-ends"><span>{1 / num_classes:.0%}: any class is as probable</span>'
        "<span>100%: one class for sure</span></div>"
    )


def colors(classes: Classes) -> dict[str, str]:
    """The colours by the classes' names, as #rrggbb."""
    return {each.name: "#{:02x}{:02x}{:02x}".format(*each.color) for each in classes.members}


def head(config: Config, classes: Classes) -> str:
    """The top of the page, as HTML."""
    data, names = config.data, ", ".join(classes.names)
    height, width = data.size
    return (
        f"<h1>petseg</h1><p>Says of each pixel of a photograph which of {len(classes)} classes it is in: "
        f"{html.escape(names if len(names) < 200 else names[:200] + ' ...')}. "
        f"The network was trained on {html.escape(data.dataset)} at {width} x {height} pixels. "
        "Photographs stay on the machine that serves this page, and are deleted from it.</p>"
    )


def facts(segmentation: "Segmentation", seconds: float, step: int, original: Sequence[int]) -> str:
    """What was found in a picture and how long it took, as HTML.

    Args:
      segmentation: what was found.
      seconds: how long the network took.
      step: step of the training at which the network had these weights.
      original: height and width of the picture before it was reduced.
    """
    height, width = segmentation.mask.shape
    size = f"{width} x {height} pixels"
    if (height, width) != tuple(original[:2]):
        size += f" (reduced from {original[1]} x {original[0]})"
    counts = np.bincount(segmentation.mask.ravel(), minlength=len(segmentation.classes))
    shares = sorted(zip(counts / counts.sum(), segmentation.classes.members, strict=True), key=lambda pair: -pair[0])
    listed = "".join(
        f'<span><i style="background: rgb{each.color}"></i>{html.escape(each.name)} {share:.1%}</span>'
        for share, each in shares
        if share > 0
    )
    certain = segmentation.confidence.mean(dtype=np.float64)
    return (
        f'<p class="shares">{listed}</p><p>{size} in {seconds:.2f} s, with a mean confidence of {certain:.0%}; '
        f"weights of step {step}</p>"
    )


def error_sentence(text: str) -> str:
    """An error, as HTML."""
    return f'<p class="error" role="alert">{html.escape(text)}</p>'


def _ramp() -> np.ndarray:
    """The colours of the confidence, uint8 [256, 3], from none to full."""
    return matplotlib.colormaps[CONFIDENCE_COLORS](np.arange(256), bytes=True)[:, :3]
