"""What a run starts from: its own checkpoint, another run, pretrained weights of the encoder, or nothing."""

import dataclasses
import logging
import math
from pathlib import Path

import keras
import tensorflow as tf

from petseg.config import Config, ModelConfig
from petseg.data.examples import Examples
from petseg.errors import CheckpointError, ConfigError
from petseg.models import encoders, pretrained_weights
from petseg.reporting.summaries import EMA
from petseg.runs import building, checkpoints, model_selection, packed_run
from petseg.runs.packed_run import PackedRun
from petseg.runs.training_data import TrainingData
from petseg.runs.work_directory import WorkDirectory

CALIBRATION_IMAGES, CALIBRATION_PIXELS = 64, 64 * 128**2  # at most; memory grows with the pixels
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """What a run starts from, found by `find_starting_point`.

    Attributes:
      checkpoint: path of the run's own checkpoint; empty if there is none.
      init_from: work directory or checkpoint of another run; empty if it is not used.
      encoder_weights: weights of the encoder: "imagenet", a file, or "none".
    """

    checkpoint: str = ""
    init_from: str = ""
    encoder_weights: str = "none"


def find_starting_point(config: Config, workdir: WorkDirectory) -> StartingPoint:
    """What a run starts from: the first of these that there is.

    1. Its own newest checkpoint. Everything goes on as if it had not stopped.
    2. The weights of another run, --init_from. This is a new run, from step 0, with an optimizer that knows nothing.
    3. Pretrained weights of the encoder, --encoder_weights. The decoder is random.
    4. Nothing. The encoder is random too; its batch norms are set by training images. A network of one's own is as its
       function returns it.

    Raises:
      PetsegError: if it cannot be used, as far as can be seen before a model is built.
    """
    own = checkpoints.newest_intact(workdir.checkpoints)
    if own:
        return StartingPoint(checkpoint=own)
    source = config.model.init_from
    if source:
        if file := packed_run.packed_file(source):
            PackedRun.open(file)
        elif not WorkDirectory(source).config_file.is_file() and not _checkpoint_file(source).is_file():
            raise ConfigError(
                f"--init_from={source}: is neither the work directory of a run, nor a checkpoint, nor a file of packed "
                f"weights, nor a packaged model ({', '.join(packed_run.NAMES)})"
            )
        return StartingPoint(init_from=source)
    if config.model.network:
        return StartingPoint()
    pretrained_weights.check_weights_file(config.model.encoder_weights)
    return StartingPoint(encoder_weights=config.model.encoder_weights)


def initial_training_data(start: StartingPoint) -> TrainingData | None:
    """What the run of --init_from was trained on; None if there is none, or nothing is known of it.

    Raises:
      PetsegError: if the file that says so cannot be read.
    """
    if not start.init_from:
        return None
    if file := packed_run.packed_file(start.init_from):
        return PackedRun.open(file).training_data
    return TrainingData.read(_workdir_of(start.init_from).data_file)


def build_initial_model(start: StartingPoint, config: Config, examples: Examples) -> keras.Model:
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
        if file := packed_run.packed_file(start.init_from):
            _fill_from_packed_run(start.init_from, PackedRun.open(file), config, model)
        else:
            _fill_from_other_run(start.init_from, config, model)
    elif not start.checkpoint and start.encoder_weights == "none" and not config.model.network:
        pixels = math.prod(config.model.working_size(config.data.size))
        count = max(1, min(CALIBRATION_IMAGES, CALIBRATION_PIXELS // pixels, len(examples)))
        images, _ = examples.read(range(count))
        scaled = keras.Model(model.input, model.get_layer("scaling").output)(tf.cast(images, tf.float32))
        encoders.calibrate_batch_norm(model.get_layer("encoder").model, scaled)
    return model


def _fill_from_other_run(source: str, config: Config, model: keras.Model) -> None:
    """Fills a new model with the weights of another run, and says what that is and what it is not."""
    workdir, averaged = _workdir_of(source), False
    is_checkpoint = not WorkDirectory(source).config_file.is_file()
    path = source.removesuffix(".index")
    if not workdir.config_file.is_file():  # a checkpoint that lies elsewhere: of what model it is, nobody knows
        step, left = checkpoints.restore_model(path, model=model), []
    else:
        theirs = workdir.load_config()
        _check_same_beginning(source, config.model, theirs.model)
        if not is_checkpoint:
            if not checkpoints.steps(workdir.best):
                raise CheckpointError(f"--init_from={source}: there is no checkpoint in {workdir.best} yet")
            path = checkpoints.resolve_checkpoint(workdir.checkpoints, workdir.best, "best")
            averaged = model_selection.selected_weights(theirs) == EMA
        original = building.build_model(theirs, workdir.load_classes())  # averages are known by what was trained there
        step = building.restore(path, theirs, original, averaged=averaged)
        left = transfer_weights(original, model, same_layers=_is_same_network(config.model, theirs.model))
    _say_what_was_taken("averaged weights" if averaged else "weights", path, step, left)


def _workdir_of(source: str) -> WorkDirectory:
    """The work directory that --init_from names, or in which the checkpoint that it names lies, if that lies in one."""
    workdir = WorkDirectory(source)
    return workdir if workdir.config_file.is_file() else WorkDirectory(Path(source).absolute().parent.parent)


def _fill_from_packed_run(source: str, packed: PackedRun, config: Config, model: keras.Model) -> None:
    """Fills a new model with packed weights, and says what that is and what it is not."""
    _check_same_beginning(source, config.model, packed.config.model)
    original = packed.build_model()
    step = packed.restore(str(packed.path), original)
    left = transfer_weights(original, model, same_layers=_is_same_network(config.model, packed.config.model))
    _say_what_was_taken(f"{packed.weights} weights", str(packed.path), step, left)


def _say_what_was_taken(kind: str, path: str, step: int, left: list[str]) -> None:
    rest = f"; {len(left)} of its weights do not fit, and begin anew: {', '.join(left)}" if left else ""
    logger.info("initialised with the %s of %s, step %d; this is a new run, from step 0%s", kind, path, step, rest)


def _check_same_beginning(source: str, ours: ModelConfig, theirs: ModelConfig) -> None:
    """Raises ConfigError if the weights of another run's encoder mean something else here, or its code would run."""
    pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in ("network", "encoder", "encoder_alpha")}
    if encoders.scaling(ours.encoder, ours.input_scaling) != encoders.scaling(theirs.encoder, theirs.input_scaling):
        pairs["input_scaling"] = (ours.input_scaling, theirs.input_scaling)
    for name, (mine, its) in pairs.items():
        if mine != its:
            raise ConfigError(f"--{name}={mine}: must be {its}, as in the run of --init_from={source}")


def _is_same_network(ours: ModelConfig, theirs: ModelConfig) -> bool:
    return ours.decoder == theirs.decoder and bool(ours.inner_size) == bool(theirs.inner_size)


def transfer_weights(original: keras.Model, model: keras.Model, *, same_layers: bool) -> list[str]:
    """Fills a model with those weights of another that have their place and shape in it.

    The weights of an encoder are matched by their order, for Keras numbers layers without a name as they come.

    Args:
      original: the model that knows something.
      model: the model to fill.
      same_layers: whether both have the same layers, though perhaps not of the same shapes, so that all weights can be
        matched by their order; otherwise those outside the encoder are matched by their names.

    Returns:
      names of the weights that were left as they were.
    """
    if same_layers and len(original.weights) == len(model.weights):
        pairs = list(zip(original.weights, model.weights, strict=True))
    else:
        encoders_of_both = (
            [weight for layer in each.layers if layer.name == "encoder" for weight in layer.weights]
            for each in (original, model)
        )
        encoder = list(zip(*encoders_of_both, strict=False))
        known = {id(weight) for pair in encoder for weight in pair}
        named = {weight.path: weight for weight in original.weights if id(weight) not in known}
        pairs = [*encoder, *((named.get(w.path), w) for w in model.weights if id(w) not in known)]
    left = []
    for source, target in pairs:
        if source is None or tuple(source.shape) != tuple(target.shape):
            left.append(target.path)
        else:
            target.assign(source)
    return left


def _checkpoint_file(path: str) -> Path:
    return Path(path.removesuffix(".index") + ".index")
