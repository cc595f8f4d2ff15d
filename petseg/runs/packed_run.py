"""A trained run in one file: half-precision weights, and with them all that it takes to build its network.

The file is a safetensors file, which other programs read too, and which holds nothing that could be run.
"""

import dataclasses
import json
import logging
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from petseg import config as config_lib
from petseg.classes import Classes
from petseg.config import CONFIG_FORMAT, Config, DistributionConfig, RuntimeConfig
from petseg.config.eval_config import PACKED_SUFFIX, ScoreConfig
from petseg.errors import CheckpointError, ConfigError, ExportError, one_line
from petseg.files import write_bytes
from petseg.runs import trained_run
from petseg.runs.work_directory import WorkDirectory

if TYPE_CHECKING:
    import keras

logger = logging.getLogger(__name__)
SUFFIX = PACKED_SUFFIX
FOLDER = Path(__file__).parent.parent / "pretrained"
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # raised by JSON of another structure
NAMES = tuple(sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}")))


@dataclasses.dataclass(frozen=True)
class PackedRun:
    """What such a file holds.

    Attributes:
      path: path of the file.
      config: config of the run, without the paths of the machine on which it was trained.
      classes: the classes that it tells apart.
      card: what is said of it: `step`, `weights` ("averaged" or "trained"), and what else its packer knew.
    """

    path: Path
    config: Config
    classes: Classes
    card: dict[str, Any]

    @classmethod
    def open(cls, path: Path, score: ScoreConfig | None = None) -> "PackedRun":
        """Reads what a file says of itself, but not yet the weights.

        Args:
          path: the file.
          score: precision, data folder and cache that are asked for instead of the run's; None: nothing.

        Raises:
          CheckpointError: if there is no such file, petseg has not written it, or its network would be code.
        """
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                # Infinity and NaN, which are no JSON, become null, so that a model card can repeat what is here.
                record = json.loads((file.metadata() or {})["petseg"], parse_constant=lambda _: None)
            if record["format"] != CONFIG_FORMAT:
                raise CheckpointError(f"{path}: has format {record['format']}; this petseg reads {CONFIG_FORMAT}")
            classes = Classes.from_dict(record["classes"], stored=True)
            config = _without_paths(config_lib.from_dict(record["config"]))  # anybody may have written the file
            _check_card(record["card"])
        except (OSError, safetensors.SafetensorError, *MALFORMED, ConfigError) as error:
            raise CheckpointError(f"{path}: not a file of packed weights: {one_line(error)}") from error
        if config.model.network:
            raise CheckpointError(
                f"{path}: its metadata names the network {config.model.network}, which is Python code; must be a file "
                "of a network that petseg builds itself, as --export=weights writes it"
            )
        config = config if score is None else trained_run.with_score_options(config, score)
        return cls(path, config, classes, record["card"])

    @property
    def training_data(self) -> None:
        """What is known of the data that the run was trained on: nothing but its config."""
        return None

    @property
    def weights(self) -> str:
        """Which weights they are, in words."""
        return self.card["weights"]

    def build_model(self) -> "keras.Model":
        """The network, with random weights; inside ``strategy.scope()`` where there is one."""
        from petseg.runs import building

        return building.build_model(self.config, self.classes)

    def checkpoint(self, which: str, *, intact: bool = True) -> str:
        """The path of the file, whichever checkpoint is asked for: it holds one."""
        return str(self.path)

    def restore(self, path: str, model: "keras.Model") -> int:
        """Fills the network with the weights in the file; returns the step at which the run had them.

        Raises:
          CheckpointError: if the file is damaged.
        """
        try:
            tensors = safetensors.numpy.load_file(path)
            for name, variable in _by_name(model).items():
                variable.assign(tensors[name].astype(np.float32))
        except (OSError, safetensors.SafetensorError, *MALFORMED) as error:
            raise CheckpointError(f"{path}: its weights do not fit its network: {one_line(error)}") from error
        return self.card["step"]

    def model_card(self, checkpoint: str, split: str, step: int) -> dict[str, Any]:
        """What a model card says of the run."""
        classes = self.classes.to_dict()
        record = {"config": config_lib.to_dict(self.config), "classes": classes}
        return {**self.card, "classes": classes["classes"], "checkpoint": checkpoint, "run": record}


def pack(path: Path, model: "keras.Model", config: Config, classes: Classes, card: dict[str, Any]) -> PackedRun:
    """Writes a model's weights into a file.

    Args:
      path: the file; one that is there is replaced.
      model: the network of the config.
      config: config of the run.
      classes: the classes that it tells apart.
      card: what is to be said of it, JSON values, with `step` and `weights`.

    Raises:
      ExportError: if the network is code of somebody's own, which no file holds, or a weight is too large.
    """
    if config.model.network:
        raise ExportError(f"its network is code, {config.model.network}, which the file would not hold")
    tensors = {name: _in_half_precision(np.asarray(variable)) for name, variable in _by_name(model).items()}
    too_large = [name for name, values in tensors.items() if not np.isfinite(values).all()]
    if too_large:
        raise ExportError(f"{too_large[0]} holds numbers that half precision cannot hold")
    record = {
        "format": CONFIG_FORMAT,
        "config": config_lib.to_dict(_without_paths(config)),
        "classes": classes.to_dict(),
        "card": card,
    }
    write_bytes(path, safetensors.numpy.save(tensors, metadata={"petseg": json.dumps(record)}))
    return PackedRun.open(path)


def packaged_file(name: str) -> Path:
    """The file of a packaged model, one of NAMES."""
    return FOLDER / f"{name}{SUFFIX}"


def packed_file(source: str) -> Path | None:
    """The file of packed weights that a user's text names; None if the text is the path of something else.

    A run in a work directory comes before a packaged model of the same name.

    Args:
      source: a path, or the name of a packaged model.

    Raises:
      ConfigError: if the text is the name of a packaged model, and also of a file or folder that is no run.
    """
    path = Path(source)
    if source not in NAMES:
        return path if source.endswith(SUFFIX) and not path.is_dir() else None
    if WorkDirectory(path).config_file.is_file():
        logger.warning("%s: the run in this folder is used; %s is the packaged model", source, packaged_file(source))
        return None
    if os.path.lexists(path):
        raise ConfigError(
            f"{source}: is a path here, but no run, and also the name of a packaged model; must be "
            f"{os.path.join(os.curdir, source)} for the path, or {packaged_file(source)} for the packaged model"
        )
    return packaged_file(source)


def _check_card(card: Any) -> None:
    """Raises ConfigError if the card of a packed file is not an object with a step and the kind of weights."""
    is_known = isinstance(card, dict) and type(card.get("step")) is int and isinstance(card.get("weights"), str)
    if not is_known or card["step"] < 0:
        raise ConfigError(f'card: got {str(card)[:100]}; must be an object with a "step" of at least 0 and "weights"')


def _in_half_precision(values: np.ndarray) -> np.ndarray:
    """Kernels as float16; what has one number for a channel stays as it is, for variances may be very small."""
    with np.errstate(over="ignore"):  # what becomes infinite is refused by name
        return values if values.ndim < 2 else values.astype(np.float16)


def _by_name(model: "keras.Model") -> "dict[str, keras.Variable]":
    """A model's variables, by names that are the same in every process.

    Those of Keras's layers without a name count up as a process builds them; so the place stands first.
    """
    width = math.ceil(math.log10(len(model.weights) + 1))
    return {f"{i:0{width}d}/{variable.name}": variable for i, variable in enumerate(model.weights)}


def _without_paths(config: Config) -> Config:
    """The config but for what says more of the machine than of the run."""
    neutral = {name: "" for name in ("data_dir", "cache_dir", "classes", "data_service")}
    config = dataclasses.replace(config, distribution=DistributionConfig())
    return config.changed(
        data={**neutral, "cache_dir": config_lib.CACHE_DIR},
        model={"encoder_weights": "none", "init_from": ""},
        runtime={"workdir": RuntimeConfig().workdir},
    )
