"""What eval.py does with --predict: from a trained run to masks. Imports TensorFlow only where it computes."""

from pathlib import Path

from petseg.config import DistributionConfig
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.deployment import onnx_files, prediction
from petseg.deployment.photograph_files import Plan, check_foreground
from petseg.deployment.prediction import Predictor
from petseg.runs import open_run
from petseg.runs.packed_run import PackedRun
from petseg.runs.trained_run import TrainedRun
from petseg.runtime import startup
from petseg.runtime.signals import StopSignals


def predict(config: EvalConfig) -> list[Path]:
    """Writes masks for photographs in files.

    Returns:
      the masks.

    Raises:
      PetsegError: if work directory or checkpoint cannot be used, nothing matches, or some files cannot be read.
    """
    score = config.score
    with StopSignals():
        run = open_run.open_run(score)
        tile = score.tile_size(run.config.data)
        if score.cutout:
            check_foreground(run.classes)
        plan = Plan.make(score.predict, score.prediction_dir, cutout=score.cutout, skip_existing=score.skip_existing)
        if not plan.photographs:  # nothing to load a network for
            return prediction.report(plan)
        build = _onnx_predictor if _runtime(run, score) == "onnx" else _tensorflow_predictor
        return prediction.carry_out(plan, build(run, score, config.distribution, tile))


def _runtime(run: TrainedRun | PackedRun, score: ScoreConfig) -> str:
    """What computes; a file that is there answers before TensorFlow is loaded, but in the run's precision only."""
    if score.runtime != "auto":
        return score.runtime
    return "onnx" if score.precision == "run" and onnx_files.is_at_hand(run) else "tensorflow"


def _onnx_predictor(
    run: TrainedRun | PackedRun, score: ScoreConfig, distribution: DistributionConfig, tile: tuple[int, int] | None
) -> Predictor:
    file = onnx_files.find_or_make(run, score.checkpoint, distribution)
    return Predictor(file, run.classes, resize=run.config.data.resize, tile=tile, flip_tta=score.flip_tta)


def _tensorflow_predictor(
    run: TrainedRun | PackedRun, score: ScoreConfig, distribution: DistributionConfig, tile: tuple[int, int] | None
) -> Predictor:
    startup.load_tensorflow(show_greetings=score.debug)
    from petseg.runtime import process

    path = run.checkpoint(score.checkpoint)
    process.set_up_runtime(run.config, distribution, one_device=True)
    model, _ = open_run.load_model(run, path)
    return Predictor(model, run.classes, resize=run.config.data.resize, tile=tile, flip_tta=score.flip_tta)
