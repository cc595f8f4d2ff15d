"""The demo page's layout and events in gradio."""

import logging
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from PIL import Image

from petseg.config.image_spec import PLAIN, ImageSpec
from petseg.data.drawings import animal_drawing
from petseg.deployment.demo import views
from petseg.deployment.demo.networks import Networks
from petseg.deployment.demo.uploads import Uploads
from petseg.deployment.segmentation import blend_mask
from petseg.errors import DataError, PetsegError, one_line

logger = logging.getLogger(__name__)
MOST_PIXELS = 2_000_000  # larger images are downscaled; eval.py --predict does not
EXAMPLES = 8
OPACITY = 0.5
NOT_SEGMENTED = "The photograph could not be segmented; see the log of the page's server"
UPLOADS_ARE_KEPT = (600, 3600)  # seconds between deletions of old files, and age from which they are deleted
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


class Overlaid(NamedTuple):
    """Image and mask of a segmentation, kept to redraw the overlay with another opacity."""

    image: np.ndarray
    mask: np.ndarray


NOTHING = views.Pictures(None, None, None, None)


def build(networks: Networks, folder: Path, uploads: Uploads) -> gr.Blocks:
    """Builds the page."""
    classes, first = networks.run.classes, networks.checkpoints[:1]
    with gr.Blocks(title="petseg", analytics_enabled=False, delete_cache=UPLOADS_ARE_KEPT, fill_width=True) as page:
        gr.HTML(views.head(networks.run.config, networks.run.classes), elem_classes="petseg-head")
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
                    info="The mean of the weights over the last training steps",
                )  # fmt: skip
                flip_tta = gr.Checkbox(
                    False, label="Flip averaging", elem_id="flip",
                    info="Average with the prediction of the mirror image: twice the time",
                )  # fmt: skip
                if networks.run.config.data.image_spec == PLAIN:
                    gr.Examples(drawings(folder / "examples"), photo, label="Drawings to try", cache_examples=False)
            with gr.Column(scale=5, min_width=480):
                facts = gr.HTML(elem_classes="petseg-facts", elem_id="facts")
                with gr.Row():
                    overlay = _image_output("Overlay", "overlay")
                    annotated = gr.AnnotatedImage(
                        label="Classes", color_map=views.colors(classes), height=360, elem_id="classes", format="png"
                    )
                with gr.Row():
                    with gr.Column():
                        confidence = _image_output("Confidence", "confidence")
                        gr.HTML(views.confidence_scale(len(classes)))
                    with gr.Column():
                        cutout = _image_output("Cut-out", "cutout", visible=bool(classes.foreground.any()))
        shown = [facts, overlaid, overlay, annotated, confidence, cutout]

        def segment(photo: Any, which: Any, averaged: Any, flip_tta: Any, opacity: Any) -> list:
            if photo is None:
                return ["", None, *NOTHING]
            try:
                image = _uploaded(photo, uploads, networks.run.config.data.image_spec)
            except DataError as error:
                return [views.error_sentence(str(error)), None, *NOTHING]
            try:
                return _segment(networks, image, which, bool(averaged), bool(flip_tta), _share(opacity))
            except Exception as error:  # such as out of memory: the page stays up
                # Messages name files of this machine, which users of the page must not see.
                expected = isinstance(error, PetsegError)
                logger.error("could not segment a photograph: %s", one_line(error), exc_info=not expected)
                return [views.error_sentence(NOT_SEGMENTED), None, *NOTHING]

        def redraw_overlay(kept: Overlaid | None, opacity: Any) -> Image.Image | None:
            return kept and blend_mask(kept.image, kept.mask, classes, _share(opacity))

        gr.on(
            [photo.change, checkpoint.change, averaged.change, flip_tta.change],
            segment,
            [photo, checkpoint, averaged, flip_tta, opacity],
            shown,
            preprocess=False,  # otherwise gradio decodes uploads, and supports fewer formats
            trigger_mode="always_last",
            concurrency_limit=1,
            api_visibility="private",
        )
        opacity.input(
            redraw_overlay,
            [overlaid, opacity],
            overlay,
            trigger_mode="always_last",
            show_progress="hidden",
            api_visibility="private",
        )
    return page


def launch_options() -> dict[str, Any]:
    """Theme and style for `launch`; fonts come with gradio, not from other servers."""
    return {"theme": gr.themes.Default(primary_hue="teal", neutral_hue="slate"), "css": CSS}


def _uploaded(photo: Any, uploads: Uploads, spec: ImageSpec) -> np.ndarray:
    """Reads the image that a request names, [H, W, C] in transport format.

    `gr.Image` checks only requests with the keys that a browser sends. Raises DataError if it was not uploaded, was
    deleted, or cannot be read.
    """
    file = uploads.resolve(photo.get("path") if isinstance(photo, dict) else None)
    if file is None:
        raise DataError("the photograph was not uploaded or has been deleted; upload it again")
    return views.read(file, spec)


def _share(value: Any) -> float:
    """An opacity from a request, clipped to [0, 1]."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return min(max(float(value), 0.0), 1.0) if is_number else OPACITY


def _segment(
    networks: Networks, image: np.ndarray, checkpoint: str, averaged: bool, flip_tta: bool, opacity: float
) -> list[Any]:
    segmenter = networks(checkpoint, averaged, flip_tta)
    small = views.reduced(image, MOST_PIXELS)
    start = time.perf_counter()
    segmentation = segmenter.predictor(small)
    seconds = time.perf_counter() - start
    found = views.facts(segmentation, seconds, segmenter.step, image.shape)
    return [found, Overlaid(segmentation.image, segmentation.mask), *views.pictures(segmentation, opacity)]


def drawings(folder: Path) -> list[list[str]]:
    """Draws example images of cats and dogs, disjoint from any training, into a new folder; one row each."""
    folder.mkdir()
    files = []
    for i in range(EXAMPLES):
        drawing = animal_drawing.draw(np.random.default_rng([1_000_000, i]))
        files.append(folder / f"{animal_drawing.SPECIES[drawing.species].lower()}_{i}.png")
        Image.fromarray(drawing.image).save(files[-1])
    return [[str(file)] for file in files]


def _image_output(label: str, name: str, *, visible: bool = True) -> gr.Image:
    return gr.Image(
        label=label, interactive=False, height=360, elem_id=name, visible=visible,
        format="jpeg" if name == "overlay" else "png", buttons=["download", "fullscreen"],
    )  # fmt: skip
