"""What a run starts from: its own checkpoint, another run, pretrained weights of the encoder, or nothing."""

import dataclasses
import logging
import math
from pathlib import Path

import keras
import tensorflow as tf

from petseg.config import Config
from petseg.data.decoding import Examples
from petseg.errors import CheckpointError, ConfigError
from petseg.models import encoders, pretrained_weights
from petseg.reporting.summaries import EMA, shown_run
from petseg.runs import building, checkpoints
from petseg.runs.work_directory import WorkDirectory

CALIBRATION_IMAGES, CALIBRATION_PIXELS = 64, 64 * 128**2  # at most; memory grows with the pixels
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """What a run starts from, found by `find`.

    Attributes:
      checkpoint: path of the run's own checkpoint; empty if there is none.
      init_from: work directory or checkpoint of another run; empty if it is not used.
      encoder_weights: weights of the encoder: "imagenet", a file, or "none".
    """

    checkpoint: str = ""
    init_from: str = ""
    encoder_weights: str = "none"


def find(config: Config, workdir: WorkDirectory) -> StartingPoint:
    """What a run starts from: the first of these that there is.

    1. Its own newest checkpoint. Everything goes on as if it had not stopped.
    2. The weights of another run, --init_from. This is a new run, from step 0, with an optimizer that knows nothing.
    3. Pretrained weights of the encoder, --encoder_weights. The decoder is random.
    4. Nothing. The encoder is random too; its batch norms are set by training images.

    Raises:
      PetsegError: if it cannot be used, as far as can be seen before a model is built.
    """
    own = checkpoints.newest_intact(workdir.checkpoints)
    if own:
        return StartingPoint(checkpoint=own)
    source = config.model.init_from
    if source:
        if not WorkDirectory(source).config_file.is_file() and not _checkpoint_file(source).is_file():
            raise ConfigError(f"--init_from={source}: is neither the work directory of a run nor a checkpoint")
        return StartingPoint(init_from=source)
    pretrained_weights.check(config.model.encoder_weights)
    return StartingPoint(encoder_weights=config.model.encoder_weights)


def build_model(start: StartingPoint, config: Config, examples: Examples) -> keras.Model:
    """The network with the weights of a starting point, but for those of the run's own checkpoint.

    These are restored with all else that the checkpoint holds, once that is built. Call it inside
    ``strategy.scope()``.

    Args:
      start: starting point of the run.
      config: config of the run.
      examples: the examples of the training split, by which a random encoder is calibrated.

    Raises:
      PetsegError: if weights do not fit.
    """
    model = building.build_model(config, examples.classes, start.encoder_weights)
    if start.init_from:
        _fill_from_other_run(start.init_from, config, model)
    elif not start.checkpoint and start.encoder_weights == "none":
        pixels = math.prod(config.model.working_size(config.data.size))
        images = examples.images[: max(1, min(CALIBRATION_IMAGES, CALIBRATION_PIXELS // pixels))]
        images = images if examples.parts is None else examples.parts.middles(images)
        scaled = keras.Model(model.input, model.get_layer("scaling").output)(tf.cast(images, tf.float32))
        encoders.calibrate_batch_norm(model.get_layer("encoder").model, scaled)
    return model


def _fill_from_other_run(source: str, config: Config, model: keras.Model) -> None:
    """Fills a new model with the weights of another run, and says what that is and what it is not."""
    workdir, averaged = WorkDirectory(source), False
    if not workdir.config_file.is_file():
        path = source.removesuffix(".index")
        step = checkpoints.restore_model(path, model=model)
    else:
        theirs = workdir.load_config()
        for name in ("encoder", "encoder_alpha", "input_scaling"):
            ours, its = getattr(config.model, name), getattr(theirs.model, name)
            if ours != its:
                raise ConfigError(f"--{name}={ours}: must be {its}, as in the run of --init_from={source}")
        if not checkpoints.steps(workdir.best):
            raise CheckpointError(f"--init_from={source}: there is no checkpoint in {workdir.best} yet")
        path = checkpoints.find(workdir.checkpoints, workdir.best, "best")
        averaged = shown_run(theirs) == EMA
        original = building.build_model(theirs, workdir.load_classes())  # averages are known by what was trained there
        step = building.restore(path, theirs, original, averaged=averaged)
        model.set_weights(original.get_weights())
    kind = "averaged weights" if averaged else "weights"
    logger.info("initialised with the %s of %s, step %d; this is a new run, from step 0", kind, path, step)


def _checkpoint_file(path: str) -> Path:
    return Path(path.removesuffix(".index") + ".index")
