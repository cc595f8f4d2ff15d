"""Initial weights of a run: its own checkpoint, another run, pretrained encoder weights, or random ones."""

import dataclasses
import logging
import math
import os
from pathlib import Path

import keras
import tensorflow as tf

from petseg import custom_code
from petseg.config import Config, ModelConfig
from petseg.data.examples import Examples
from petseg.errors import CheckpointError, ConfigError
from petseg.models import encoders, pretrained_weights
from petseg.models.batch_norm_calibration import calibrate_batch_norm
from petseg.models.inference import to_floats
from petseg.reporting.summaries import EMA
from petseg.runs import building, checkpoints, model_selection, packed_run
from petseg.runs.open_trained_run import load_model
from petseg.runs.packed_run import PackedRun
from petseg.runs.trained_run import TrainedRun
from petseg.runs.training_data_record import TrainingData
from petseg.runs.work_directory import WorkDirectory

CALIBRATION_IMAGES, CALIBRATION_PIXELS = 64, 64 * 128**2  # at most; memory grows with the number of pixels
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """Source of a run's initial weights, chosen by `find_starting_point`."""

    checkpoint: str = ""  # path of the run's own newest checkpoint, or empty
    init_from: str = ""  # --init_from, if it is used, else empty
    encoder_weights: str = "none"  # weights of the encoder: "imagenet", path of a file, or "none"


def find_starting_point(config: Config, workdir: WorkDirectory) -> StartingPoint:
    """The first of these sources that exists.

    1. The run's own newest checkpoint. The run resumes exactly.
    2. --init_from, the weights of another run. A new run at step 0, with a new optimizer.
    3. --encoder_weights, pretrained weights of the encoder. The decoder is random.
    4. Random weights; batch norms of the encoder are calibrated with training images. A custom network stays as its
       function returns it.

    Raises PetsegError if the source cannot be used, as far as this shows before a model is built.
    """
    own = checkpoints.newest_intact(workdir.checkpoints)
    if own:
        return StartingPoint(checkpoint=own)
    source = config.model.init_from
    if source:
        if file := packed_run.packed_file(source):
            PackedRun.open(file)
        elif not WorkDirectory(source).config_file.is_file() and not os.path.isfile(
            source.removesuffix(".index") + ".index"
        ):
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
    """The recorded training data of the run of --init_from; None without --init_from or without a record.

    Raises PetsegError if the record cannot be read.
    """
    if not start.init_from:
        return None
    if file := packed_run.packed_file(start.init_from):
        return PackedRun.open(file).training_data
    return TrainingData.read(_workdir_of(start.init_from).data_file)


def build_initial_model(start: StartingPoint, config: Config, examples: Examples) -> keras.Model:
    """Builds a run's network with its initial weights; call it inside ``strategy.scope()``.

    The run's own checkpoint is not restored here but later, together with the optimizer and the other state.

    `examples` of the training split calibrate the batch norms of a random encoder.

    Raises PetsegError if weights do not fit.
    """
    model = building.build_model(config, examples.classes, start.encoder_weights)
    if start.init_from:
        _initialise_from_run(start.init_from, config, model)
    elif not start.checkpoint and start.encoder_weights == "none" and not config.model.network:
        pixels = math.prod(config.model.working_size(config.data.size))
        count = max(1, min(CALIBRATION_IMAGES, CALIBRATION_PIXELS // pixels, len(examples)))
        images, _ = examples.read(range(count))
        floats = to_floats(tf.constant(images), config.data.image_spec)
        scaled = keras.Model(model.input, model.get_layer("scaling").output)(floats)
        calibrate_batch_norm(model.get_layer("encoder").model, scaled)
    return model


def _initialise_from_run(source: str, config: Config, model: keras.Model) -> None:
    """Copies the weights of --init_from into a new model, and logs which were copied and which were not."""
    run: TrainedRun | PackedRun
    if file := packed_run.packed_file(source):
        run, path = PackedRun.open(file), str(file)
        _check_compatible(source, config.model, run.config.model)
    else:
        workdir, path = _workdir_of(source), source.removesuffix(".index")
        if not workdir.config_file.is_file():  # a checkpoint outside a work directory: its network is unknown
            _log_initialised("weights", path, checkpoints.restore_model(path, model=model), [])
            return
        theirs, is_workdir = workdir.load_config(), WorkDirectory(source).config_file.is_file()
        _check_compatible(source, config.model, theirs.model)
        averaged = is_workdir and model_selection.selected_weights(theirs) == EMA
        run = TrainedRun(workdir, theirs, workdir.load_classes(), averaged=averaged)
        if is_workdir:
            if not checkpoints.steps(workdir.best):
                raise CheckpointError(f"--init_from={source}: there is no checkpoint in {workdir.best} yet")
            path = run.checkpoint("best")
    original, step = load_model(run, path)
    ours, theirs_model = config.model, run.config.model
    same_layers = ours.decoder == theirs_model.decoder and bool(ours.inner_size) == bool(theirs_model.inner_size)
    _log_initialised(f"{run.weights} weights", path, step, transfer_weights(original, model, same_layers=same_layers))


def _workdir_of(source: str) -> WorkDirectory:
    """The work directory that --init_from names, or the one that would contain the checkpoint that it names."""
    workdir = WorkDirectory(source)
    return workdir if workdir.config_file.is_file() else WorkDirectory(Path(source).absolute().parent.parent)


def _log_initialised(kind: str, path: str, step: int, left: list[str]) -> None:
    rest = f"; {len(left)} weights do not fit and keep their initial values: {', '.join(left)}" if left else ""
    logger.info("initialised with the %s of %s, step %d; this is a new run, from step 0%s", kind, path, step, rest)


def _check_compatible(source: str, ours: ModelConfig, theirs: ModelConfig) -> None:
    """Raises ConfigError if another run has a different encoder or input scaling, or a custom network."""
    pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in ("network", "encoder", "encoder_alpha")}
    if encoders.scaling(ours.encoder, ours.input_scaling) != encoders.scaling(theirs.encoder, theirs.input_scaling):
        pairs["input_scaling"] = (ours.input_scaling, theirs.input_scaling)
    if custom_code.is_reference(theirs.decoder):  # code that only the user's own flag may run
        pairs["decoder"] = (ours.decoder, theirs.decoder)
    for name, (mine, its) in pairs.items():
        if mine != its:
            raise ConfigError(f"--{name}={mine}: must be {its}, as in the run of --init_from={source}")


def transfer_weights(original: keras.Model, model: keras.Model, *, same_layers: bool) -> list[str]:
    """Copies those weights of a model that have a counterpart of the same shape in another one.

    Encoder weights are matched by order, because Keras numbers unnamed layers in the order of their creation.

    Args:
      same_layers: whether both have the same layers, possibly with other shapes, so that all weights are matched by
        order; otherwise those outside the encoder are matched by name.

    Returns:
      paths of the weights of `model` that were left as they were.
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
