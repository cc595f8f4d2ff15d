"""`eval.py --export`."""

import logging
from pathlib import Path

import numpy as np

from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.config.image_spec import PLAIN, ImageSpec
from petseg.data import catalog, loading
from petseg.data.drawings import animal_drawing
from petseg.data.resizing import Resizing
from petseg.deployment import export as export_lib
from petseg.deployment.export_folder import check_replaceable
from petseg.deployment.export_formats import FORMATS
from petseg.errors import PetsegError
from petseg.runs import building
from petseg.runs.open_trained_run import load_model, open_single
from petseg.runs.packed_run import PackedRun
from petseg.runs.trained_run import TrainedRun
from petseg.runtime import process_setup
from petseg.runtime.signals import StopSignals

logger = logging.getLogger(__name__)
COMPARED_IMAGES, CALIBRATION_IMAGES = 64, 100


def export(config: EvalConfig) -> list[export_lib.Agreement]:
    """Exports the model and compares each export with it on images of the evaluation split.

    The data set is not downloaded for this: if it is not on disk, drawings are used. Calibration images, which only
    `tflite_int8` needs, are loaded as for training. Raises PetsegError if work directory or checkpoint cannot be used,
    a package is missing, or an export disagrees.
    """
    score = config.score
    run = open_single(score)
    path = run.checkpoint(score.checkpoint)
    formats = score.export_formats()
    export_lib.check_formats(formats)
    check_replaceable(Path(score.output_dir), [FORMATS[name].file for name in formats])
    split = score.split or run.config.data.eval_split
    with StopSignals():
        process_setup.set_up_runtime(run.config, config.distribution, one_device=True)
        model, step = load_model(run, path)
        calibration, data = None, run.config.data
        if any(FORMATS[name].calibrated for name in formats):
            some = loading.load_some(data, data.train_split, run.classes, count=CALIBRATION_IMAGES, spread=True)
            calibration = some.images
        examples, compared_on = _comparison_images(run, score)
        agreements = export_lib.export(
            model,
            formats,
            score.output_dir,
            examples,
            calibration=calibration,
            resize=run.config.data.resize,
            image_spec=run.config.data.image_spec,
            card=run.model_card(path, split, step),
            compared_on=compared_on,
            rebuild=building.rebuild_for_export(run.config, run.classes),
        )
    print(export_lib.table(agreements))
    return agreements


def _comparison_images(run: TrainedRun | PackedRun, score: ScoreConfig) -> tuple[np.ndarray, str]:
    """Images [N, H, W, C] of the evaluation split, or drawings if it is not on disk; and which of the two.

    Raises DataError if the data set is on disk and lacks the split of --split.
    """
    data = run.config.data
    reason = f"{data.dataset} is not on disk"
    if catalog.is_on_disk(data):
        try:
            split = score.split or data.eval_split
            return loading.load_some(data, split, run.classes, count=COMPARED_IMAGES).images, "images"
        except PetsegError as error:
            if score.split:
                raise
            reason = str(error)
    logger.warning("exports are compared on drawings instead of images of the data set: %s", reason)
    return _drawings(data.size, data.image_spec), "drawings"


def _drawings(size: tuple[int, int], spec: ImageSpec) -> np.ndarray:
    """Drawn cats and dogs in transport format, [N, H, W, C]; their colours are repeated over other channels."""
    resizing = Resizing(size)
    drawn = (animal_drawing.draw(np.random.default_rng(i)).image for i in range(COMPARED_IMAGES))
    colors = np.stack([resizing.image(image) for image in drawn])
    if spec == PLAIN:
        return colors
    low, high = spec.device_range
    shares = colors[..., [channel % 3 for channel in range(spec.channels)]] / np.float32(255)
    return (low + shares * (high - low)).clip(0).astype(spec.travels_as)
