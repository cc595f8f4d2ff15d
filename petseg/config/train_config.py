"""The configuration: frozen dataclasses in which one field is one flag.

A field's help, unit, default and allowed values stand in one place, here; flags, ``--help``, the tables in the
package's README and the checks are derived from it by `options`. Imports no TensorFlow, so that a wrong flag is
answered at once.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from petseg.config import command_line, options
from petseg.config.augmentation_config import AugmentationConfig
from petseg.config.data_config import DataConfig
from petseg.config.distribution_config import DistributionConfig
from petseg.config.model_config import ModelConfig
from petseg.config.options import Exclusive, Group, option
from petseg.errors import ConfigError

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")


@dataclasses.dataclass(frozen=True)
class LossConfig(Group):
    """How the losses of pixels become one number."""

    loss: str = option(
        "cross_entropy",
        "`cross_entropy_dice`: cross-entropy plus --dice_weight times the soft Dice loss of each image",
        choices=("cross_entropy", "focal", "dice", "cross_entropy_dice"),
    )
    dice_weight: float = option(0.5, "share of Dice in --loss=cross_entropy_dice", unit="factor", minimum=0)
    focal_gamma: float = option(
        2.0, "exponent of --loss=focal; the higher, the less pixels count that are right already", minimum=0
    )
    label_smoothing: float = option(
        0.0, "share of each pixel's target that is spread over all classes; not in Dice", minimum=0, below=1
    )
    class_weights: str = option(
        "",
        "a weight for each class: empty (all 1), `2,2,1`, `balanced` (inverse frequency) or `median_frequency`; "
        "normalised as --class_weight_normalization says",
    )
    class_weight_normalization: str | None = option(
        None,
        "normalisation of --class_weights: `mean`: to a mean of 1 over the classes, so that equal weights change "
        "nothing; `sum`: to a sum of 1, as in TensorFlow's tutorial, which divides cross-entropy, but not Dice, by the "
        "number of classes; empty: `mean`, or what the run in --workdir has",
        kind=str,
        choices=("mean", "sum"),
    )
    boundary_weight: float = option(
        0.0, "added to the weight of pixels where classes meet, less further away, as in the U-Net paper", minimum=0
    )
    boundary_sigma: float = option(5.0, "reach of --boundary_weight", unit="pixels", above=0)
    loss_normalization: str = option(
        "pixels",
        "divisor of the summed loss: the number of valid pixels, or the sum of their weights",
        choices=("pixels", "weights"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.class_weight_values()

        if self.loss == "dice" and self.label_smoothing:
            raise ConfigError(f"--label_smoothing={self.label_smoothing:g}: must be 0 with --loss=dice")

    def class_weight_values(self) -> tuple[float, ...] | None:
        """The given weights, not normalised; None where none are given, or they are to be counted."""
        if self.class_weights in ("", "balanced", "median_frequency"):
            return None
        try:
            values = tuple(float(part) for part in self.class_weights.split(","))
        except ValueError:
            values = ()
        positive = all(math.isfinite(value) and value >= 0 for value in values) and sum(values) > 0
        if not positive:
            raise ConfigError(
                f"--class_weights={self.class_weights}: must be comma-separated numbers of at least 0, one for each "
                "class, not all 0, or balanced, or median_frequency, or nothing"
            )
        return values


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Group):
    """How gradients become updates."""

    optimizer: str = option("adam", "the optimizer", resume="fixed", choices=("adam", "adamw", "sgd"))
    momentum: float = option(0.9, "momentum of --optimizer=sgd", resume="fixed", minimum=0, below=1)
    weight_decay: float = option(
        0.0, "share of a weight, times the learning rate, that a step takes away; not of biases and norms", minimum=0
    )
    learning_rate: float = option(1e-3, "the highest learning rate", above=0)
    encoder_learning_rate_factor: float = option(
        1.0, "learning rate of a trained encoder over that of the decoder", unit="factor", above=0
    )
    unfreeze_encoder_at: int = option(
        0,
        "step before which a trained encoder stands still; its gradients are computed, and count in --clip_norm",
        unit="steps",
        minimum=0,
    )
    learning_rate_schedule: str = option(
        "constant",
        "over the run, `cosine` and `polynomial` fall to 0, `step` falls in steps",
        choices=("constant", "cosine", "polynomial", "step"),
    )
    warmup_steps: int = option(0, "steps over which the learning rate rises first", unit="steps", minimum=0)
    polynomial_power: float = option(0.9, "exponent of --learning_rate_schedule=polynomial", above=0)
    drop_at: str = option(
        "0.5,0.75", "moments at which --learning_rate_schedule=step falls, as shares of the run after the warm-up"
    )
    drop_factor: float = option(0.1, "factor of each fall of --learning_rate_schedule=step", above=0, below=1)
    clip_norm: float = option(0.0, "largest global norm of the gradients; 0: no clipping", minimum=0)
    ema_decay: float = option(
        0.0,
        "also keep, and score, an exponential moving average of the weights, of which a step keeps this share; 0: do "
        "not. The best checkpoint is then that of the averaged weights",
        resume="fixed",
        minimum=0,
        below=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.drop_shares()
        if (self.optimizer == "adam" and self.weight_decay) or (self.optimizer == "adamw" and not self.weight_decay):
            raise ConfigError(
                f"--weight_decay={self.weight_decay:g}: must be 0 with --optimizer=adam, above 0 with --optimizer=adamw"
            )

    def drop_shares(self) -> tuple[float, ...]:
        """Where the learning rate falls in steps."""
        try:
            shares = tuple(float(part) for part in self.drop_at.split(","))
        except ValueError:
            shares = ()
        if not shares or not shares[0] > 0 or not shares[-1] < 1 or list(shares) != sorted(set(shares)):
            raise ConfigError(f"--drop_at={self.drop_at}: must be comma-separated numbers between 0 and 1 that rise")
        return shares


@dataclasses.dataclass(frozen=True)
class ComputeConfig(Group):
    """How a device computes a step."""

    precision: str = option(
        "float32",
        "dtype of the layers' arithmetic; weights, logits, loss and statistics are float32 in any case",
        choices=PRECISIONS,
    )
    initial_loss_scale: float = option(
        2.0**15,
        "first factor of the loss under mixed_float16 or --all_reduce_dtype=float16, against underflow",
        unit="factor",
        minimum=1,
    )
    loss_scale_growth_interval: int = option(
        2000, "finite steps after which the loss scale doubles", unit="steps", minimum=1
    )
    micro_batches: int = option(
        1, "slices in which a replica works off its part of a batch, to save memory", unit="slices", minimum=1
    )
    jit_compile: bool = option(
        False, "compile forward and backward pass with XLA; several replicas need --nosync_batch_norm"
    )
    all_reduce_dtype: str = option(
        "float32",
        "dtype in which gradients travel between replicas; float16 halves the bytes, rounds to 11 bits, and brings the "
        "loss scale of mixed_float16 with it; refused with one replica, except in a cluster",
        choices=("float32", "float16"),
    )
    tensor_float_32: bool = option(
        True,
        "TensorFloat-32 on GPUs that have it (Ampere and later): float32 products of factors rounded to 10 bits, "
        "several times as fast; always off under --deterministic",
    )


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Group):
    """When things happen, in steps of the one clock."""

    exclusive: ClassVar[tuple[Exclusive, ...]] = (
        Exclusive({"epochs": 0, "train_steps": 0}, lambda epochs, steps: bool(epochs and steps)),
    )

    epochs: int = option(
        20, "length of the run; of --epochs and --train_steps, the later one counts", unit="epochs", minimum=0
    )
    train_steps: int = option(0, "length of the run; 0: as --epochs says", unit="steps", minimum=0)
    steps_per_loop: int = option(10, "steps in one call of the compiled loop", unit="steps", minimum=1)
    summary_every: int = option(20, "interval of training summaries", unit="steps", minimum=1)
    eval_every: int = option(0, "interval of evaluations; 0: once an epoch", unit="steps", minimum=0)
    eval_examples: int = option(
        0,
        "number of examples of --eval_split that each evaluation of the run scores: a sample, the same each time, that "
        "--seed decides; all if there are no more; 0: all",
        unit="examples",
        resume="fixed",
        minimum=0,
    )
    eval_at_start: bool = option(False, "evaluate before the first step too; worth it with --init_from")
    patience: int = option(
        0,
        "number of evaluations without a better mean IoU (of averaged weights, if any) after which the run ends early, "
        "and is complete; 0: it does not",
        unit="evaluations",
        minimum=0,
    )
    patience_before_decay: bool = option(
        False, "allow --patience to end a run whose learning rate falls to 0 before it has fallen"
    )
    checkpoint_every: int = option(0, "interval of checkpoints; 0: once an epoch", unit="steps", minimum=0)
    checkpoint_every_minutes: float = option(
        0.0, "also save when so much time has passed since the last checkpoint; 0: do not", unit="minutes", minimum=0
    )
    keep_checkpoints: int = option(3, "newest checkpoints to keep", unit="checkpoints", minimum=1)
    histogram_every: int = option(
        0, "interval of weight and gradient histograms; 0: once an epoch", unit="steps", minimum=0
    )
    log_every: int = option(
        20, "interval of lines where the output is no terminal, with the numbers of the last summary", unit="steps",
        minimum=1,
    )  # fmt: skip
    profile_steps: str = option("", "steps to profile, for TensorBoard's profile page: `100:110`; empty: none")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.profile_range()

    def profile_range(self) -> tuple[int, int] | None:
        """The steps to profile, [first, last); None for none."""
        if not self.profile_steps:
            return None
        parts = re.fullmatch(r"(\d+):(\d+)", self.profile_steps)
        if not parts or int(parts[1]) >= int(parts[2]):
            raise ConfigError(
                f"--profile_steps={self.profile_steps}: must be FIRST:LAST, two steps, the first below the last"
            )
        return int(parts[1]), int(parts[2])


@dataclasses.dataclass(frozen=True)
class RuntimeConfig(Group):
    """Where the run lives, and what may vary between two runs of one config."""

    workdir: str = option("", "work directory; empty: a new folder under `runs/`")
    seed: int = option(
        0, "seed of initial weights, example order and augmentation", resume="fixed", minimum=0, maximum=2**32 - 1
    )
    example_order: int | None = option(
        None,
        "version of the example order: `2`; `1`, that of earlier versions of petseg, repeats after 256 epochs and is "
        "the same for seeds that are equal modulo 256; empty: `2`, or what the run in --workdir has",
        kind=int,
        resume="fixed",
        minimum=1,
        maximum=2,
    )
    on_nonfinite: str = option(
        "halt",
        "consequence of a loss or gradients that are not finite: the run ends; the step is skipped; or the weights "
        "go back to the last checkpoint, while the clock goes on",
        choices=("halt", "skip", "restore"),
    )
    nonfinite_limit: int = option(
        10,
        "number of times that --on_nonfinite=skip or restore may be needed before the run ends",
        unit="times",
        minimum=0,
    )
    quiet: bool = option(False, "write warnings and errors to the terminal, and nothing else")
    deterministic: bool = option(False, "op determinism: the same run gives the same bits; slower on a GPU")
    debug: bool = option(
        False, "show the traceback of an error that is otherwise one line, and all that TensorFlow says at the start"
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """All of a training run.

    Raises:
      ConfigError: if two fields contradict each other.
    """

    has_presets: ClassVar[bool] = True  # its flags may come from --preset=NAME

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    compute: ComputeConfig = ComputeConfig()
    distribution: DistributionConfig = dataclasses.field(default_factory=DistributionConfig)
    schedule: ScheduleConfig = ScheduleConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    def __post_init__(self) -> None:
        schedule, model = self.schedule, self.model
        if bool(schedule.epochs) == bool(schedule.train_steps):
            raise ConfigError(
                f"--epochs={schedule.epochs} and --train_steps={schedule.train_steps}: "
                "exactly one of the two must be above 0"
            )
        if self.distribution.strategy == "multi_worker_mirrored" and not self.runtime.workdir:
            raise ConfigError("--workdir: must be a folder that all processes of the cluster share")
        falling = self.optimizer.learning_rate_schedule in ("cosine", "polynomial")
        if schedule.patience and falling and not schedule.patience_before_decay:
            raise ConfigError(
                f"--patience={schedule.patience}: must be 0 with "
                f"--learning_rate_schedule={self.optimizer.learning_rate_schedule}, for scores rise most when the rate "
                "has fallen, and the run would end before; --patience_before_decay allows it"
            )
        for name, nothing in (("unfreeze_encoder_at", 0), ("encoder_learning_rate_factor", 1)):
            value = getattr(self.optimizer, name)
            if value != nothing and model.first_trained == "none":
                raise ConfigError(f"--{name}={value}: must be {nothing} without --train_encoder")

    @classmethod
    def of(cls, **flags: Any) -> "Config":
        """A config from the names of flags: `Config.of(dataset="synthetic_pets", image_size=64, epochs=3)`.

        Raises:
          PetsegError: as on the command line, and with the same text.
        """
        return command_line.parse(["petseg.Config", *options.as_arguments(flags)], cls)

    @classmethod
    def preset(cls, name: str, **flags: Any) -> "Config":
        """The config of a preset, with other values for some flags: `Config.preset("best", epochs=5)`.

        Raises:
          PetsegError: if there is no such preset, or as `of`.
        """
        return cls.of(preset=name, **flags)

    def changed(self, **groups: Mapping[str, Any]) -> "Config":
        """A config with other values: `config.changed(runtime={"workdir": "runs/pets"})`.

        A value also switches off a flag that it excludes: `config.changed(schedule={"train_steps": 100})` sets the
        epochs to 0.

        Raises:
          ConfigError: if a value, or a pair of values, cannot be used.
        """
        values = {name: getattr(self, name).changed(**changes) for name, changes in groups.items()}
        return dataclasses.replace(self, **values)
