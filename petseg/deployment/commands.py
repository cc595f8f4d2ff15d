"""What eval.py does with --export, and with packed weights: from a trained run to models for elsewhere, and scores."""

from typing import Any

import numpy as np

from petseg.config.eval_config import EvalConfig
from petseg.data import decoding
from petseg.deployment import export as export_lib
from petseg.deployment.segmenter import Segmenter
from petseg.evaluation import score_tables
from petseg.runs import scoring
from petseg.runs.opening import open_run
from petseg.runs.packed_run import PackedRun
from petseg.runs.trained_run import TrainedRun
from petseg.runtime import process
from petseg.runtime.signals import StopSignals

COMPARED_IMAGES, CALIBRATION_IMAGES = 64, 100


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Scores packed weights on a split, and prints the table; there is no work directory to write it to.

    Raises:
      PetsegError: if the file or the split cannot be used.
    """
    score = config.score
    run = open_run(score)
    split = scoring.checked_split(run, score)
    with StopSignals():
        process.set_up_runtime(run.config, config.distribution, one_device=True)
        model = run.build_model()
        step = run.restore(run.checkpoint(score.checkpoint), model)
        segmenter = Segmenter(model, run.config, run.classes, step=step, flip_tta=score.flip_tta)
        results = segmenter.evaluate(split, eval_examples=score.eval_examples)
    print(score_tables.table(results))
    return results


def export(config: EvalConfig) -> list[export_lib.Agreement]:
    """Writes the model in other formats and compares each with the original on images of the evaluation split.

    Returns:
      how close each is.

    Raises:
      PetsegError: if work directory or checkpoint cannot be used, a package is missing, or an export disagrees.
    """
    score = config.score
    run = open_run(score)
    path = run.checkpoint(score.checkpoint)
    formats = score.export_formats()
    export_lib.check_formats(formats)
    split = score.split or run.config.data.eval_split
    with StopSignals():
        process.set_up_runtime(run.config, config.distribution, one_device=True)
        model = run.build_model()
        step = run.restore(path, model)
        agreements = export_lib.export(
            model,
            formats,
            score.output_dir,
            _images_to_compare_on(run, split),
            calibration=_calibration_images(run) if export_lib.needs_calibration(formats) else None,
            resize=run.config.data.resize,
            card=run.model_card(path, split, step),
        )
    print(export_lib.table(agreements))
    return agreements


def _images_to_compare_on(run: TrainedRun | PackedRun, split: str) -> np.ndarray:
    return decoding.load_first(run.config.data, split, run.classes, count=COMPARED_IMAGES).images


def _calibration_images(run: TrainedRun | PackedRun) -> np.ndarray:
    data = run.config.data
    return decoding.load_spread(data, data.train_split, run.classes, count=CALIBRATION_IMAGES).images
