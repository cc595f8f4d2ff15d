"""A trained run in one safetensors file: half-precision weights, config and classes.

Other programs can read the weights, and nothing in the file can be executed.
"""

import dataclasses
import json
import logging
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import safetensors
import safetensors.numpy

from petseg import config as config_lib, custom_code
from petseg.classes import Classes
from petseg.config import CONFIG_FORMAT, Config, DistributionConfig, RuntimeConfig, data_config
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
    """Content of a file of packed weights, except the weights."""

    class_weights: ClassVar[None] = None  # scores have the loss without class weights
    figures: ClassVar[None] = None  # nothing is written beside a packed file
    training_data: ClassVar[None] = None  # nor does it hold a record of the training data

    path: Path
    config: Config  # config of the run, without paths of the machine on which it was trained
    classes: Classes  # classes of the run
    # model card: `step`, `weights` ("averaged" or "trained"), and further entries of the program that packed it
    card: dict[str, Any]

    @classmethod
    def open(cls, path: Path, score: ScoreConfig | None = None) -> "PackedRun":
        """Reads the metadata of a file, not yet the weights.

        Args:
          score: flags of eval.py, whose precision, data folder and cache replace the run's; None: they stay.

        Raises:
          CheckpointError: if the file does not exist, petseg did not write it, or its network is a custom one.
        """
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                # Infinity and NaN are not valid JSON; they become null, so that a model card can repeat them.
                record = json.loads((file.metadata() or {})["petseg"], parse_constant=lambda _: None)
            if record["format"] != CONFIG_FORMAT:
                raise CheckpointError(f"{path}: has format {record['format']}; this petseg reads {CONFIG_FORMAT}")
            classes = Classes.from_dict(record["classes"], stored=True)
            config = _without_paths(config_lib.from_dict(record["config"]))  # the file may come from anyone
            _check_card(record["card"])
        except (OSError, safetensors.SafetensorError, *MALFORMED, ConfigError) as error:
            raise CheckpointError(f"{path}: not a file of packed weights: {one_line(error)}") from error
        for flag, reference in config_lib.code_references(config).items():
            raise CheckpointError(
                f"{path}: its metadata names the {flag} {reference}, which is Python code; must be a file of a network "
                "that petseg builds itself, as --export=weights writes it"
            )
        config = config if score is None else trained_run.with_score_options(config, score)
        return cls(path, config, classes, record["card"])

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def members(self) -> "tuple[PackedRun]":
        return (self,)

    def results_file(self, split: str, step: int, *differences: str) -> None:
        """None: nothing is written beside a packed file."""

    @property
    def weights(self) -> str:
        """Kind of the weights: "averaged" or "trained"."""
        return self.card["weights"]

    def build_model(self) -> "keras.Model":
        """Builds the network with random weights; call it inside ``strategy.scope()`` if there is one."""
        from petseg.runs import building

        return building.build_model(self.config, self.classes)

    def checkpoint(self, which: str, *, intact: bool = True) -> str:
        """Path of the file, which holds a single checkpoint."""
        return str(self.path)

    def restore(self, path: str, model: "keras.Model") -> int:
        """Restores the weights of the file; returns their step. Raises CheckpointError if the file is damaged."""
        try:
            tensors = safetensors.numpy.load_file(path)
            for name, variable in _by_name(model).items():
                variable.assign(tensors[name].astype(np.float32))
        except (OSError, safetensors.SafetensorError, *MALFORMED) as error:
            raise CheckpointError(f"{path}: its weights do not fit its network: {one_line(error)}") from error
        return self.card["step"]

    def model_card(self, checkpoint: str, split: str, step: int) -> dict[str, Any]:
        """Content of a model card: the card of the file with classes, checkpoint and config."""
        classes = self.classes.to_dict()
        record = {"config": config_lib.to_dict(self.config), "classes": classes}
        return {**self.card, "classes": classes["classes"], "checkpoint": checkpoint, "run": record}


def pack(path: Path, model: "keras.Model", config: Config, classes: Classes, card: dict[str, Any]) -> PackedRun:
    """Writes a model's weights and metadata into a file; an existing file is replaced.

    The card holds JSON values, `step` and `weights` among them. Raises ExportError if the network is a custom one, or a
    weight is too large for half precision.
    """
    for flag, reference in config_lib.code_references(config).items():
        if flag in ("network", "encoder", "decoder"):
            raise ExportError(f"its {flag} is the code {reference}, which the file cannot hold")
        logger.warning("--%s=%s: the file cannot hold code; names the default instead", flag, reference)
    tensors = {name: np.asarray(variable) for name, variable in _by_name(model).items()}
    with np.errstate(over="ignore"):  # of kernels; vectors stay float32, because variances may be very small
        tensors = {name: values if values.ndim < 2 else values.astype(np.float16) for name, values in tensors.items()}
    too_large = [name for name, values in tensors.items() if not np.isfinite(values).all()]
    if too_large:
        raise ExportError(f"{too_large[0]} holds numbers that half precision cannot hold")
    record = {
        "format": CONFIG_FORMAT,
        "config": config_lib.to_dict(config_lib.without_code(_without_paths(config))),
        "classes": classes.to_dict(),
        "card": card,
    }
    write_bytes(path, safetensors.numpy.save(tensors, metadata={"petseg": json.dumps(record)}))
    return PackedRun.open(path)


def packaged_file(name: str) -> Path:
    """The file of a packaged model, one of NAMES."""
    return FOLDER / f"{name}{SUFFIX}"


def packed_file(source: str) -> Path | None:
    """Path of the packed weights that a flag such as --workdir names; None if it names something else.

    A work directory takes precedence over a packaged model of the same name. Raises ConfigError if it is the name of a
    packaged model and also of a path that is not a work directory.
    """
    path = Path(source)
    if source not in NAMES:
        return path if source.endswith(SUFFIX) and not path.is_dir() else None
    if WorkDirectory(path).config_file.is_file():
        logger.warning("%s: the run in this folder is used; %s is the packaged model", source, packaged_file(source))
        return None
    if os.path.lexists(path):
        raise ConfigError(
            f"{source}: is a path that is not a work directory, and also the name of a packaged model; must be "
            f"{os.path.join(os.curdir, source)} for the path, or {packaged_file(source)} for the packaged model"
        )
    return packaged_file(source)


def _check_card(card: Any) -> None:
    """Raises ConfigError if a model card lacks its step or the kind of its weights."""
    is_known = isinstance(card, dict) and type(card.get("step")) is int and isinstance(card.get("weights"), str)
    if not is_known or card["step"] < 0:
        raise ConfigError(f'card: got {str(card)[:100]}; must be an object with a "step" of at least 0 and "weights"')


def _by_name(model: "keras.Model") -> "dict[str, keras.Variable]":
    """A model's variables by names that do not depend on the process.

    Keras numbers unnamed layers as a process builds them, so each name begins with the variable's position.
    """
    width = math.ceil(math.log10(len(model.weights) + 1))
    return {f"{i:0{width}d}/{variable.name}": variable for i, variable in enumerate(model.weights)}


def _without_paths(config: Config) -> Config:
    """The config without paths and devices of the machine."""
    neutral = {name: "" for name in ("data_dir", "cache_dir", "classes", "data_service")}
    if custom_code.is_reference(config.data.dataset):
        neutral["dataset"] = data_config.FOLDER  # whose folder must be given
    config = dataclasses.replace(config, distribution=DistributionConfig())
    return config.changed(
        data={**neutral, "cache_dir": config_lib.CACHE_DIR},
        model={"encoder_weights": "none", "init_from": ""},
        runtime={"workdir": RuntimeConfig().workdir},
    )
