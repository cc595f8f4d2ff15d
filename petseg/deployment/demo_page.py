"""The demo page: what stands where, and what happens when something is chosen."""

import html
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import matplotlib
import numpy as np
from PIL import Image

from petseg.classes import Classes
from petseg.data import animal_drawing
from petseg.deployment.demo_networks import Networks
from petseg.deployment.photographs import read_image
from petseg.deployment.prediction import blended
from petseg.deployment.segmenter import Segmentation
from petseg.errors import DataError, PetsegError, one_line

logger = logging.getLogger(__name__)
MOST_PIXELS = 4_000_000  # of what is segmented and shown; eval.py --predict reduces nothing
MOST_PROBABILITIES = 2**28  # so that hundreds of classes take no more than 1 GiB
MOST_OUTLINED = 1_000_000  # pixels of the picture of classes, which is sent as one picture for each class
EXAMPLES = 8
OPACITY = 0.5
CONFIDENCE_COLORS = "viridis"
UPLOADS_ARE_KEPT = (600, 3600)  # seconds between looks for old files, seconds after which one is old
CSS = """
.petseg-head h1 {font-size: 1.7rem; margin: 0 0 .2rem 0}
.petseg-head p, .petseg-facts p {margin: 0; color: var(--body-text-color-subdued)}
.petseg-facts {min-height: 3.2rem}
.petseg-facts .shares {display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; color: var(--body-text-color)}
.petseg-facts .shares i {display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em}
.petseg-facts .error {color: #b3261e; background: #fdecea; padding: .6rem .9rem; border-radius: 8px; font-weight: 600}
#overlay img, #confidence img, #cutout img {width: 100%; height: 100%; object-fit: contain}
#cutout img {background: repeating-conic-gradient(#d4d4d8 0 25%, #fff 0 50%) 0 0 / 20px 20px}
.petseg-scale {height: .7rem; border-radius: 4px; margin: 0 .2rem}
.petseg-ends {display: flex; justify-content: space-between; font-size: .8rem; margin: 0 .2rem;
 color: var(--body-text-color-subdued)}
"""


class Pictures(NamedTuple):
    """What the page shows of a segmentation, in the order of its outputs; None where there is nothing to show."""

    overlay: Image.Image | None
    annotated: tuple[np.ndarray, list[tuple[np.ndarray, str]]] | None
    confidence: Image.Image | None
    cutout: Image.Image | None


class Overlaid(NamedTuple):
    """What is kept of a segmentation to lay the colours over the picture with another opacity."""

    image: np.ndarray
    mask: np.ndarray


NOTHING = Pictures(None, None, None, None)


def build(networks: Networks, folder: Path) -> gr.Blocks:
    """The page, to be launched.

    Args:
      networks: what segments.
      folder: a folder for the examples.
    """
    classes, first = networks.run.classes, networks.checkpoints[:1]
    with gr.Blocks(title="petseg", analytics_enabled=False, delete_cache=UPLOADS_ARE_KEPT, fill_width=True) as page:
        gr.HTML(head(networks), elem_classes="petseg-head")
        overlaid = gr.State(None, time_to_live=UPLOADS_ARE_KEPT[1])
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                photo = gr.Image(
                    label="Photograph", type="filepath", sources=["upload", "clipboard"], height=300,
                    placeholder="Drop or paste a photograph, or click to choose one", elem_id="photo",
                )  # fmt: skip
                opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity of the colours", elem_id="opacity")
                checkpoint = gr.Radio(
                    networks.checkpoints, value=first[0] if first else None, label="Checkpoint", elem_id="checkpoint",
                    visible=len(networks.checkpoints) > 1,
                )  # fmt: skip
                averaged = gr.Checkbox(
                    networks.has_averages, label="Averaged weights", elem_id="averaged", visible=networks.has_averages,
                    info="The mean of the weights over the last steps of the training",
                )  # fmt: skip
                flip_tta = gr.Checkbox(
                    False, label="Flip averaging", elem_id="flip",
                    info="Average with what the network says of the mirror image: twice the time",
                )  # fmt: skip
                gr.Examples(drawings(folder / "examples"), photo, label="Drawings to try", cache_examples=False)
            with gr.Column(scale=5, min_width=480):
                facts = gr.HTML(elem_classes="petseg-facts", elem_id="facts")
                with gr.Row():
                    overlay = _picture("Overlay", "overlay")
                    annotated = gr.AnnotatedImage(
                        label="Classes", color_map=colors(classes), height=360, elem_id="classes", format="png"
                    )
                with gr.Row():
                    with gr.Column():
                        confidence = _picture("Confidence", "confidence")
                        gr.HTML(confidence_scale(len(classes)))
                    with gr.Column():
                        cutout = _picture("Cut-out", "cutout", visible=bool(classes.foreground.any()))
        shown = [facts, overlaid, overlay, annotated, confidence, cutout]

        def segment(photo: dict[str, Any] | None, which: str, averaged: bool, flip_tta: bool, opacity: float) -> list:
            if photo is None:
                return ["", None, *NOTHING]
            try:
                return _segment(networks, Path(photo["path"]), which, bool(averaged), bool(flip_tta), float(opacity))
            except PetsegError as error:
                return [error_sentence(str(error)), None, *NOTHING]
            except Exception as error:  # such as that memory is full: the page goes on
                logger.exception("a photograph could not be segmented")
                return [error_sentence(f"This could not be segmented: {one_line(error)}"), None, *NOTHING]

        def lay_over(kept: Overlaid | None, opacity: float) -> Image.Image | None:
            return kept and blended(kept.image, kept.mask, classes, opacity)

        gr.on(
            [photo.change, checkpoint.change, averaged.change, flip_tta.change],
            segment,
            [photo, checkpoint, averaged, flip_tta, opacity],
            shown,
            preprocess=False,  # with it gradio decodes what was uploaded, and reads no more than it can
            trigger_mode="always_last",
            concurrency_limit=1,
            api_visibility="private",
        )
        opacity.input(
            lay_over,
            [overlaid, opacity],
            overlay,
            trigger_mode="always_last",
            show_progress="hidden",
            api_visibility="private",
        )
    return page


def look() -> dict[str, Any]:
    """What `launch` is to be told of the look; the fonts come with gradio, not from elsewhere."""
    return {"theme": gr.themes.Default(primary_hue="teal", neutral_hue="slate"), "css": CSS}


def _segment(
    networks: Networks, path: Path, checkpoint: str, averaged: bool, flip_tta: bool, opacity: float
) -> list[Any]:
    image = read(path)
    segmenter = networks(checkpoint, averaged, flip_tta)
    small = reduced(image, min(MOST_PIXELS, MOST_PROBABILITIES // len(segmenter.classes)))
    start = time.perf_counter()
    segmentation = segmenter(small)
    seconds = time.perf_counter() - start
    found = facts(segmentation, seconds, segmenter.step, image.shape)
    return [found, Overlaid(small, segmentation.mask), *pictures(segmentation, opacity)]


def read(path: Path) -> np.ndarray:
    """An uploaded picture, uint8 [H, W, 3].

    Raises:
      DataError: if it is none; says so without the path that it has on this machine.
    """
    try:
        return read_image(path)
    except PetsegError as error:
        raise DataError(f"{path.name}: {error}") from error
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


def pictures(segmentation: Segmentation, opacity: float) -> Pictures:
    """What is shown of a segmentation."""
    has_foreground = bool(segmentation.classes.foreground.any())
    return Pictures(
        segmentation.overlay(opacity),
        annotations(segmentation),
        confidence_picture(segmentation.probabilities),
        segmentation.cutout() if has_foreground else None,
    )


def annotations(segmentation: Segmentation) -> tuple[np.ndarray, list[tuple[np.ndarray, str]]]:
    """The picture, and for each class that is in it where it is, float [H, W] of 0 and 1, and its name."""
    image = reduced(segmentation.image, MOST_OUTLINED)
    size = (image.shape[1], image.shape[0])
    mask = np.asarray(Image.fromarray(segmentation.mask).resize(size, Image.Resampling.NEAREST))
    names = segmentation.classes.names
    return image, [((mask == i).astype(np.float32), names[i]) for i in np.unique(mask)]


def confidence_picture(probabilities: np.ndarray) -> Image.Image:
    """The probability of the most probable class, from float32 [H, W, C]: dark where all are as probable."""
    least = 1 / probabilities.shape[-1]
    share = (probabilities.max(axis=-1) - least) / (1 - least)
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


def head(networks: Networks) -> str:
    """The top of the page, as HTML."""
    run = networks.run
    data, names = run.config.data, ", ".join(run.classes.names)
    height, width = data.size
    return (
        f"<h1>petseg</h1><p>Says of each pixel of a photograph which of {len(run.classes)} classes it is in: "
        f"{html.escape(names if len(names) < 200 else names[:200] + ' ...')}. "
        f"The network was trained on {html.escape(data.dataset)} at {width} x {height} pixels. "
        "Photographs stay on the machine that serves this page, and are deleted from it.</p>"
    )


def facts(segmentation: Segmentation, seconds: float, step: int, original: Sequence[int]) -> str:
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
    certain = segmentation.probabilities.max(axis=-1).mean()
    return (
        f'<p class="shares">{listed}</p><p>{size} in {seconds:.2f} s, with a mean confidence of {certain:.0%}; '
        f"weights of step {step}</p>"
    )


def error_sentence(text: str) -> str:
    """An error, as HTML."""
    return f'<p class="error" role="alert">{html.escape(text)}</p>'


def drawings(folder: Path) -> list[list[str]]:
    """Draws the examples, cats and dogs that no training has seen, into a new folder; a row for each."""
    folder.mkdir()
    files = []
    for i in range(EXAMPLES):
        drawing = animal_drawing.draw(np.random.default_rng([1_000_000, i]))
        files.append(folder / f"{animal_drawing.SPECIES[drawing.species].lower()}_{i}.png")
        Image.fromarray(drawing.image).save(files[-1])
    return [[str(file)] for file in files]


def _picture(label: str, name: str, *, visible: bool = True) -> gr.Image:
    return gr.Image(
        label=label, interactive=False, height=360, elem_id=name, visible=visible,
        format="jpeg" if name == "overlay" else "png", buttons=["download", "fullscreen"],
    )  # fmt: skip


def _ramp() -> np.ndarray:
    """The colours of the confidence, uint8 [256, 3], from none to full."""
    return matplotlib.colormaps[CONFIDENCE_COLORS](np.arange(256), bytes=True)[:, :3]
