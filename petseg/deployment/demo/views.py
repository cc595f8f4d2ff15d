"""Images and HTML texts that the demo page shows of a segmentation; no gradio."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib
import numpy as np
from PIL import Image

from petseg.classes import Classes
from petseg.config import Config
from petseg.config.image_spec import ImageSpec
from petseg.data import images, numpy_resizing
from petseg.errors import DataError

if TYPE_CHECKING:
    from petseg.deployment.segmentation import Segmentation

MOST_OUTLINED = 1_000_000  # pixels of the image of classes, which is sent as one image per class
CONFIDENCE_COLORS = "viridis"


class Pictures(NamedTuple):
    """The images of a segmentation, in the order of the page's outputs; None shows nothing."""

    overlay: Image.Image | None
    annotated: tuple[np.ndarray, list[tuple[np.ndarray, str]]] | None
    confidence: Image.Image | None
    cutout: Image.Image | None


def read(path: Path, spec: ImageSpec) -> np.ndarray:
    """Reads an uploaded image [H, W, C], in transport format.

    Raises DataError if it cannot be read; the message does not reveal its path on this machine.
    """
    try:
        return images.read(path, spec)
    except DataError as error:
        raise DataError(f"{path.name}: {str(error).replace(str(path), path.name)}") from error


def reduced(image: np.ndarray, most_pixels: int) -> np.ndarray:
    """Downscales an image [H, W, C] to at most `most_pixels`."""
    height, width = image.shape[:2]
    shrink = (most_pixels / (height * width)) ** 0.5
    if shrink >= 1:
        return image
    return numpy_resizing.resize_image(image, (max(1, int(height * shrink)), max(1, int(width * shrink))))


def pictures(segmentation: "Segmentation", opacity: float) -> Pictures:
    """Makes the images of a segmentation."""
    has_foreground = bool(segmentation.classes.foreground.any())
    return Pictures(
        segmentation.overlay(opacity),
        annotations(segmentation),
        confidence_picture(segmentation.confidence, len(segmentation.classes)),
        segmentation.cutout() if has_foreground else None,
    )


def annotations(segmentation: "Segmentation") -> tuple[np.ndarray, list[tuple[np.ndarray, str]]]:
    """The image, and for each predicted class its region, float [H, W] of 0 and 1, and its name."""
    image = reduced(segmentation.image, MOST_OUTLINED)
    size = (image.shape[1], image.shape[0])
    mask = np.asarray(Image.fromarray(segmentation.mask).resize(size, Image.Resampling.NEAREST))
    names = segmentation.classes.names
    return image, [((mask == i).astype(np.float32), names[i]) for i in np.unique(mask)]


def confidence_picture(confidence: np.ndarray, num_classes: int) -> Image.Image:
    """Colours the confidence, float16 [H, W]: dark where all classes are equally probable."""
    least = 1 / num_classes
    share = (confidence.astype(np.float32) - least) / (1 - least)
    return Image.fromarray(_colormap()[(share * 255).clip(0, 255).round().astype(np.uint8)])


def confidence_scale(num_classes: int) -> str:
    """The colour scale of the confidence, as HTML."""
    colors = ", ".join(f"rgb({r}, {g}, {b})" for r, g, b in _colormap()[::32])
    return (
        f'<div class="petseg-scale" style="background: linear-gradient(to right, {colors})"></div>'
        f'<div class="petseg-ends"><span>{1 / num_classes:.0%}: all classes are equally probable</span>'
        "<span>100%: certain</span></div>"
    )


def colors(classes: Classes) -> dict[str, str]:
    """The classes' colours as #rrggbb by name."""
    return {each.name: "#{:02x}{:02x}{:02x}".format(*each.color) for each in classes.members}


def head(config: Config, classes: Classes) -> str:
    """The top of the page, as HTML."""
    data, names = config.data, ", ".join(classes.names)
    height, width = data.size
    return (
        f"<h1>petseg</h1><p>Semantic segmentation into {len(classes)} classes: "
        f"{html.escape(names if len(names) < 200 else names[:200] + ' ...')}. "
        f"The network was trained on {html.escape(data.dataset)} at {width} x {height} pixels. "
        "Photographs stay on the machine that serves this page and are deleted later.</p>"
    )


def facts(segmentation: "Segmentation", seconds: float, step: int, original: Sequence[int]) -> str:
    """Class shares, size, time and mean confidence of a segmentation, as HTML."""
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
    """An error message as HTML."""
    return f'<p class="error" role="alert">{html.escape(text)}</p>'


def _colormap() -> np.ndarray:
    """The colour map of the confidence, uint8 [256, 3]."""
    return matplotlib.colormaps[CONFIDENCE_COLORS](np.arange(256), bytes=True)[:, :3]
