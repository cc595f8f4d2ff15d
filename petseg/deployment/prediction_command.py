"""`eval.py --predict`: segments photographs with a trained run. Imports TensorFlow only where it is the runtime."""

from pathlib import Path
from typing import TYPE_CHECKING

from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.deployment import file_prediction, onnx_cache
from petseg.deployment.output_files import Outputs
from petseg.deployment.photograph_files import Plan
from petseg.deployment.predictor import Predictor
from petseg.deployment.segmentation import check_foreground
from petseg.runs.ensemble import Ensemble
from petseg.runs.open_trained_run import Run, load_model, open_run
from petseg.runtime import startup
from petseg.runtime.signals import StopSignals

if TYPE_CHECKING:
    import keras


def predict(config: EvalConfig) -> list[Path]:
    """Writes masks of photographs; returns their files.

    Raises PetsegError if work directory or checkpoint cannot be used, nothing matches, or some files cannot be read.
    """
    score = config.score
    with StopSignals():
        run = open_run(score)
        tile = score.tile_size(run.config.data)
        if score.cutout:
            check_foreground(run.classes)
        if score.threshold:
            run.classes.binary_foreground()  # raises
        outputs = Outputs(
            run.classes, cutout=score.cutout, mask_values=score.mask_values, probabilities=score.probabilities
        )
        pages = run.config.data.pages == "examples"
        plan = Plan.make(score.predict, score.prediction_dir, outputs, skip_existing=score.skip_existing, pages=pages)
        if not plan.photographs:  # no need to load a network
            file_prediction.log_summary(plan)
            return []
        if not isinstance(run, Ensemble) and choose_runtime(run, score) == "onnx":
            model = onnx_cache.find_or_export(run, score.checkpoint, config.distribution)
        else:
            model = _keras_model(run, config)
        data = run.config.data
        predictor = Predictor(
            model,
            run.classes,
            resize=data.resize,
            tile=tile,
            flip_tta=score.flip_tta,
            threshold=score.threshold,
            spool_dir=score.prediction_dir if score.probabilities != "none" else "",
            image_spec=data.image_spec,
        )
        return file_prediction.run_plan(plan, predictor)


def choose_runtime(run: Run, score: ScoreConfig) -> str:
    """`onnx` or `tensorflow`; by default ONNX Runtime where no export is needed and the run's precision is used."""
    if score.runtime != "auto":
        return score.runtime
    return "onnx" if score.precision == "run" and onnx_cache.is_packaged(run) else "tensorflow"


def _keras_model(run: Run, config: EvalConfig) -> "keras.Model":
    startup.load_tensorflow(show_greetings=config.score.debug)
    from petseg.runtime import process_setup

    path = run.checkpoint(config.score.checkpoint)
    process_setup.set_up_runtime(run.config, config.distribution, one_device=True)
    return load_model(run, path)[0]
