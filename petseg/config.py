"""The configuration: frozen dataclasses in which one field is one flag.

A field's help, unit, default and allowed values stand in one place, here; flags, ``--help``, the table in the README
and the checks are derived from it. Imports no TensorFlow, so that a wrong flag is answered at once.
"""

import dataclasses
import json
import math
import typing
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from absl import flags

from petseg.errors import ConfigError

CLASS_NAMES = ("pet", "background", "border")
IMAGENET_ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
CONFIG_FORMAT = 2
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker_mirrored", "central_storage", "parameter_server", "tpu")
LOCAL_CROSS_DEVICE_OPS = ("nccl", "hierarchical_copy", "reduction_to_one_device")

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Allowed:
    """The values that a field takes, as a check and in words.

    Attributes:
      choices: the only values, if not empty.
      minimum: smallest number.
      above: number that the value must exceed.
      below: number that the value must not reach.
      multiple_of: number that divides the value.
      required: whether an empty text is refused.
    """

    choices: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    below: float | None = None
    multiple_of: int | None = None
    required: bool = False

    def words(self, kind: Any) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if kind is bool:
            return "true or false"
        if kind is str:
            return "a text that is not empty" if self.required else "a text"
        text = "a whole number" if kind is int else "a number"
        if self.minimum is not None:
            text += f" of at least {self.minimum:g}"
        if self.above is not None:
            text += f" above {self.above:g}"
        if self.below is not None:
            text += f" and below {self.below:g}"
        if self.multiple_of is not None:
            text += f" that {self.multiple_of} divides"
        return text

    def admits(self, value: Any, kind: Any) -> bool:
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            return False
        if kind is str:
            return (value in self.choices) if self.choices else (bool(value.strip()) or not self.required)
        if kind is float and not math.isfinite(value):
            return False
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.multiple_of is None or value % self.multiple_of == 0)
        )


def option(default: Any, help: str, *, unit: str = "", resume: str = "free", **allowed: Any) -> Any:
    """A dataclass field that is also a flag.

    Args:
      default: the value when nobody gives one; its type is the flag's type.
      help: what it decides, as a phrase.
      unit: what a number counts.
      resume: "fixed" if a checkpoint written under another value cannot be continued, else "free".
      **allowed: the arguments of `Allowed`.
    """
    metadata = {"help": help, "unit": unit, "resume": resume, "allowed": Allowed(**allowed)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Group:
    """Fields that are flags; checked when made, whoever makes them.

    Raises:
      ConfigError: if a field has a value that it does not take.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kind, allowed = getattr(self, field.name), type(field.default), field.metadata["allowed"]
            if not allowed.admits(value, kind):
                raise ConfigError(f"--{field.name}={value}: takes {allowed.words(kind)}")


@dataclasses.dataclass(frozen=True)
class DataConfig(Group):
    """Which examples, at which size."""

    dataset: str = option(
        "oxford_iiit_pet",
        "TFDS data set with `image` and `segmentation_mask`; `synthetic_pets` is embedded and needs no download",
        resume="fixed",
        required=True,
    )
    data_dir: str = option("", "folder of prepared TFDS data sets; empty: TFDS's own default")
    train_split: str = option(
        "train", "TFDS split to train on; slices such as `train[:90%]` work", resume="fixed", required=True
    )
    eval_split: str = option("test", "TFDS split to evaluate on; slices work", resume="fixed", required=True)
    image_size: int = option(
        128, "side to which images and masks are resized", unit="pixels", resume="fixed", minimum=32, multiple_of=32
    )
    batch_size: int = option(
        64, "global batch: examples per step over all replicas", unit="examples", resume="fixed", minimum=1
    )
    augment: str = option("flip", "augmentation of training examples", choices=("none", "flip"))


@dataclasses.dataclass(frozen=True)
class ModelConfig(Group):
    """The U-Net."""

    encoder_weights: str = option(
        "imagenet", "`imagenet` (a download by Keras), `none`, or a weights file", resume="fixed", required=True
    )
    encoder_alpha: float = option(1.0, "width of the MobileNetV2 encoder", unit="factor", resume="fixed", above=0)
    train_encoder: bool = option(False, "train the encoder too; its batch norms stay in inference mode", resume="fixed")
    batch_norm_momentum: float = option(
        0.99, "momentum of the decoder's moving statistics; short runs want less", resume="fixed", minimum=0, below=1
    )
    sync_batch_norm: bool = option(
        True, "batch norms of the decoder use statistics of the global batch, not of each replica's own part"
    )
    input_scaling: str = option(
        "unit", "pixel range the network sees: [0, 1] or [-1, 1]", resume="fixed", choices=("unit", "symmetric")
    )


@dataclasses.dataclass(frozen=True)
class LossConfig(Group):
    """Per-pixel losses to one number."""

    class_weights: str = option(
        "", "weights of pet, background, border: empty (all 1), `2,2,1`, or `balanced`; normalised to sum to 1"
    )
    loss_normalization: str = option(
        "pixels", "what the summed loss is divided by: valid pixels, or their weights", choices=("pixels", "weights")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.class_weight_values()

    def class_weight_values(self) -> tuple[float, ...] | None:
        """The given weights, not normalised; None where none are given (`''`, `balanced`)."""
        if self.class_weights in ("", "balanced"):
            return None
        try:
            values = tuple(float(part) for part in self.class_weights.split(","))
        except ValueError:
            values = ()
        positive = all(math.isfinite(value) and value >= 0 for value in values) and sum(values) > 0
        if len(values) != len(CLASS_NAMES) or not positive:
            raise ConfigError(
                f"--class_weights={self.class_weights}: takes {len(CLASS_NAMES)} comma-separated numbers of at least 0 "
                f"({', '.join(CLASS_NAMES)}), not all 0, or balanced, or nothing"
            )
        return values


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Group):
    """How gradients become updates."""

    optimizer: str = option("adam", "the optimizer", resume="fixed", choices=("adam", "adamw", "sgd"))
    learning_rate: float = option(1e-3, "the highest learning rate", above=0)
    learning_rate_schedule: str = option("constant", "`cosine` falls to 0 over the run", choices=("constant", "cosine"))
    clip_norm: float = option(0.0, "largest global norm of the gradients; 0: no clipping", minimum=0)


@dataclasses.dataclass(frozen=True)
class ComputeConfig(Group):
    """How a device computes a step."""

    precision: str = option(
        "float32",
        "dtype of the layers' arithmetic; weights, logits, loss and statistics are float32 in any case",
        choices=("float32", "mixed_float16", "mixed_bfloat16"),
    )
    initial_loss_scale: float = option(
        2.0**15, "what mixed_float16 multiplies the loss with at first, against underflow", unit="factor", minimum=1
    )
    loss_scale_growth_interval: int = option(
        2000, "finite steps after which mixed_float16 doubles the scale", unit="steps", minimum=1
    )
    micro_batches: int = option(
        1, "slices in which a replica works off its part of a batch, to save memory", unit="slices", minimum=1
    )
    jit_compile: bool = option(
        False, "compile forward and backward pass with XLA; several replicas need --nosync_batch_norm"
    )


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Group):
    """When things happen, in steps of the one clock."""

    epochs: int = option(20, "length of the run; exactly one of --epochs and --train_steps", unit="epochs", minimum=0)
    train_steps: int = option(0, "length of the run; 0: --epochs decides", unit="steps", minimum=0)
    steps_per_loop: int = option(10, "steps in one call of the compiled loop", unit="steps", minimum=1)
    summary_every: int = option(20, "interval of training summaries", unit="steps", minimum=1)
    eval_every: int = option(0, "interval of evaluations; 0: once an epoch", unit="steps", minimum=0)
    checkpoint_every: int = option(0, "interval of checkpoints; 0: once an epoch", unit="steps", minimum=0)
    checkpoint_every_minutes: float = option(
        0.0, "also save when so much time has passed since the last checkpoint; 0: do not", unit="minutes", minimum=0
    )
    keep_checkpoints: int = option(3, "newest checkpoints to keep", unit="checkpoints", minimum=1)


@dataclasses.dataclass(frozen=True)
class DistributionConfig(Group):
    """On which devices, and how they talk to each other."""

    strategy: str = option(
        "auto",
        "`one_device`; `mirrored`: all devices of this machine; `multi_worker_mirrored`: those of a cluster, from "
        "TF_CONFIG or Slurm; `auto`: mirrored when several are visible, else one_device",
        choices=STRATEGIES,
    )
    num_devices: int = option(0, "devices to use of this machine; 0: all", unit="devices", minimum=0)
    virtual_devices: int = option(
        0, "split the first GPU, or else the CPU, into so many logical devices; 0: do not", unit="devices", minimum=0
    )
    virtual_device_memory: int = option(4096, "memory of each part of a split GPU", unit="MiB", minimum=1)
    memory_growth: bool = option(True, "take GPU memory as it is needed, not all of it at the start")
    cross_device_ops: str = option(
        "auto",
        "how gradients are summed: `nccl`, `hierarchical_copy` or `reduction_to_one_device` within a machine, "
        "`ring` or `nccl` in a cluster; `auto`: TensorFlow decides",
        choices=("auto", *LOCAL_CROSS_DEVICE_OPS, "ring"),
    )
    cluster_timeout: float = option(
        300.0, "how long a process waits at the start for the others of its cluster", unit="seconds", above=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = {"multi_worker_mirrored": ("ring", "nccl"), "one_device": ()}.get(
            self.strategy, LOCAL_CROSS_DEVICE_OPS
        )
        if self.cross_device_ops not in ("auto", *allowed):
            raise ConfigError(
                f"--cross_device_ops={self.cross_device_ops}: with --strategy={self.strategy} takes one of "
                + ", ".join(("auto", *allowed))
            )
        if self.strategy == "one_device" and self.num_devices > 1:
            raise ConfigError(f"--num_devices={self.num_devices}: --strategy=one_device takes 1")


@dataclasses.dataclass(frozen=True)
class RuntimeConfig(Group):
    """Where the run lives, and what may vary between two runs of one config."""

    workdir: str = option("", "work directory; empty: a new folder under `runs/`")
    seed: int = option(0, "seed of initial weights, example order and augmentation", resume="fixed", minimum=0)
    on_nonfinite: str = option(
        "halt",
        "what follows when loss or gradients are not finite: the run ends; the step is skipped; or the weights "
        "go back to the last checkpoint, while the clock goes on",
        choices=("halt", "skip", "restore"),
    )
    nonfinite_limit: int = option(
        10, "how often --on_nonfinite=skip or restore may be needed before the run ends", unit="times", minimum=0
    )
    deterministic: bool = option(False, "op determinism: the same run gives the same bits; slower on a GPU")
    debug: bool = option(False, "show the traceback of an error that is otherwise one line")


@dataclasses.dataclass(frozen=True)
class Config:
    """All of a training run.

    Raises:
      ConfigError: if two fields contradict each other.
    """

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    compute: ComputeConfig = ComputeConfig()
    distribution: DistributionConfig = DistributionConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    def __post_init__(self) -> None:
        schedule, model = self.schedule, self.model
        if bool(schedule.epochs) == bool(schedule.train_steps):
            raise ConfigError(
                f"--epochs={schedule.epochs} and --train_steps={schedule.train_steps}: "
                "takes exactly one of the two above 0"
            )
        if self.distribution.strategy == "multi_worker_mirrored" and not self.runtime.workdir:
            raise ConfigError("--workdir: takes a folder that all processes of the cluster share")
        if model.encoder_weights == "imagenet" and model.encoder_alpha not in IMAGENET_ALPHAS:
            raise ConfigError(
                f"--encoder_alpha={model.encoder_alpha:g}: with --encoder_weights=imagenet takes one of "
                + ", ".join(f"{alpha:g}" for alpha in IMAGENET_ALPHAS)
            )


@dataclasses.dataclass(frozen=True)
class ScoreConfig(Group):
    """What to score; everything else comes from the work directory."""

    workdir: str = option("", "work directory of a training run", required=True)
    checkpoint: str = option("latest", "`latest`, `best`, or the path of a checkpoint", required=True)
    split: str = option("", "TFDS split to score; empty: the run's --eval_split")
    data_dir: str = option("", "folder of prepared TFDS data sets; empty: the run's --data_dir")
    batch_size: int = option(0, "examples per step; 0: the run's --batch_size", unit="examples", minimum=0)
    allow_training_images: bool = option(False, "score a split even if the run trained on some of it")
    debug: bool = option(False, "show the traceback of an error that is otherwise one line")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """All that eval.py is asked."""

    score: ScoreConfig
    distribution: DistributionConfig = DistributionConfig()


def groups(config_class: Any) -> dict[str, type[Group]]:
    """The groups of a config class by field name; one that is a single group stands under the empty name."""
    if issubclass(config_class, Group):
        return {"": config_class}
    types = typing.get_type_hints(config_class)
    return {field.name: types[field.name] for field in dataclasses.fields(config_class)}


class _Parser(flags.ArgumentParser):
    """Text of a flag to its value; says what is taken when it cannot."""

    def __init__(self, kind: type, allowed: Allowed):
        self._kind, self._allowed = kind, allowed

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return argument
        try:
            if self._kind is bool:
                return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}[argument.lower()]
            return self._kind(argument)
        except (ValueError, KeyError):
            raise ValueError(f"takes {self._allowed.words(self._kind)}") from None

    def flag_type(self) -> str:
        return self._kind.__name__


def define_flags(config_class: type, flag_values: flags.FlagValues) -> None:
    """Defines one flag for each field of a config class."""
    for group in groups(config_class).values():
        for field in dataclasses.fields(group):
            kind, metadata = type(field.default), field.metadata
            parser: Any = _Parser(kind, metadata["allowed"])
            if kind is bool:  # a class of its own in absl, which makes --name and --noname work
                flag = flags.BooleanFlag(field.name, field.default, metadata["help"])
                flag.parser = parser
            else:
                flag = flags.Flag(parser, flags.ArgumentSerializer(), field.name, field.default, metadata["help"])
            flags.DEFINE_flag(flag, flag_values)


def from_flags(config_class: type[T], flag_values: flags.FlagValues) -> T:
    """Builds a config from parsed flags.

    Raises:
      ConfigError: if a value, or a pair of values, cannot be used.
    """
    if "train_steps" in flag_values and flag_values["train_steps"].present and not flag_values["epochs"].present:
        flag_values["epochs"].value = 0  # only an --epochs that somebody gave contradicts --train_steps
    parts = {
        name: group(**{field.name: flag_values[field.name].value for field in dataclasses.fields(group)})
        for name, group in groups(config_class).items()
    }
    return parts[""] if "" in parts else config_class(**parts)  # type: ignore[return-value]


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """The config as nested dictionaries of JSON values."""
    return dataclasses.asdict(config)


def fingerprint(config: Config) -> int:
    """A number that differs where the configs of two processes differ in more than the paths they see."""
    values = to_dict(config)
    del values["data"]["data_dir"], values["model"]["encoder_weights"], values["runtime"]["workdir"]
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def from_dict(values: Mapping[str, Mapping[str, Any]]) -> Config:
    """The inverse of `to_dict`. Fields that are missing take their defaults.

    Raises:
      ConfigError: if a key is unknown or a value cannot be used.
    """
    known = groups(Config)
    _refuse_unknown(values, known)
    for name, group in known.items():
        _refuse_unknown(values.get(name, {}), [field.name for field in dataclasses.fields(group)])
    return Config(**{name: group(**values.get(name, {})) for name, group in known.items()})  # type: ignore[arg-type]


def _refuse_unknown(values: Any, known: Sequence[str] | Mapping[str, Any]) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"config: got {values!r} where an object with {', '.join(known)} belongs")
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f"config: unknown key {unknown[0]!r}; known are {', '.join(known)}")


def changes(old: Config, new: Config) -> dict[str, tuple[Any, Any, bool]]:
    """The fields that differ: name -> (old value, new value, whether the field is fixed for a run)."""
    found = {}
    for name, group in groups(Config).items():
        for field in dataclasses.fields(group):
            before, after = getattr(getattr(old, name), field.name), getattr(getattr(new, name), field.name)
            if before != after:
                found[field.name] = (before, after, field.metadata["resume"] == "fixed")
    return found


def rows(config_class: type) -> list[tuple[str, str, str, str]]:
    """A row for each field: group, flag, default, help with unit and allowed values."""
    found = []
    for name, group in groups(config_class).items():
        for field in dataclasses.fields(group):
            kind, allowed = type(field.default), field.metadata["allowed"]
            default = str(field.default).lower() if kind is bool else f"{field.default}"
            takes = f"; {allowed.words(kind)}" if allowed.choices or kind in (int, float) else ""
            unit = f" ({field.metadata['unit']})" if field.metadata["unit"] else ""
            found.append((name, field.name, default, field.metadata["help"] + unit + takes))
    return found


def markdown_table(config_class: type) -> str:
    """The flags as the table that the README shows."""
    lines = ["| flag | default | what it decides |", "| --- | --- | --- |"]
    for _, flag, default, help_text in rows(config_class):
        shown = f"`{default}`" if default else "empty"
        lines.append(f"| `--{flag}` | {shown} | {help_text} |")
    return "\n".join(lines)


def markdown_of(config: Config) -> str:
    """The values of a config as a table."""
    lines = ["| flag | value |", "| --- | --- |"]
    lines += [f"| `--{flag}` | `{value}` |" for group in to_dict(config).values() for flag, value in group.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown_table(Config), markdown_table(EvalConfig), sep="\n\n")
