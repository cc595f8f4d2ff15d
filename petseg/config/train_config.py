"""Flags of train.py: frozen dataclasses in which one field is one flag.

Flags, ``--help``, validation and the README's tables are derived from the fields by `options`. Imports no TensorFlow,
so that a wrong flag is reported at once.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from petseg import custom_code
from petseg.config import command_line, options
from petseg.config.augmentation_config import AugmentationConfig
from petseg.config.data_config import DataConfig
from petseg.config.distribution_config import DistributionConfig
from petseg.config.extension_config import ExtensionConfig
from petseg.config.model_config import ModelConfig
from petseg.config.options import SCORING, TRAINING, Exclusive, Group, numbers, option
from petseg.errors import ConfigError

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")


@dataclasses.dataclass(frozen=True)
class LossConfig(Group):
    """The loss: function, class weights, boundary weights, normalisation."""

    loss: str = option(
        "cross_entropy",
        "`cross_entropy`; `focal`; `dice`; `cross_entropy_dice`: with --dice_weight times the soft Dice "
        "loss of each image; or code, `FILE.py:function`",
        choices=("cross_entropy", "focal", "dice", "cross_entropy_dice"),
        code=SCORING,
    )
    dice_weight: float = option(0.5, "weight of Dice in --loss=cross_entropy_dice", minimum=0)
    focal_gamma: float = option(2.0, "exponent of --loss=focal", minimum=0)
    label_smoothing: float = option(
        0.0, "fraction of the target spread over all classes; not in Dice", minimum=0, below=1
    )
    class_weights: str = option(
        "", "weight of each class: `2,2,1`, `balanced` (inverse frequency) or `median_frequency`; empty: all 1"
    )
    class_weight_normalization: str | None = option(
        None,
        "normalise --class_weights to a `mean` or `sum` of 1; empty: `mean`, or as the run in --workdir",
        kind=str,
        choices=("mean", "sum"),
    )
    boundary_weight: float = option(
        0.0, "extra weight of pixels at class boundaries, falling with distance, as in the U-Net paper", minimum=0
    )
    boundary_sigma: float = option(5.0, "reach of --boundary_weight", unit="pixels", above=0)
    loss_normalization: str = option(
        "pixels",
        "divide the summed loss by the number of valid `pixels` or by the sum of their `weights`",
        choices=("pixels", "weights"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.class_weight_values()

        if self.label_smoothing and (self.loss == "dice" or custom_code.is_reference(self.loss)):
            raise ConfigError(f"--label_smoothing={self.label_smoothing:g}: must be 0 with --loss={self.loss}")

    @property
    def counts_classes(self) -> bool:
        """Whether class weights depend on class frequencies."""
        return self.class_weights in ("balanced", "median_frequency")

    def class_weight_values(self) -> tuple[float, ...] | None:
        """The given weights, not normalised; None if none are given or they depend on class frequencies."""
        if not self.class_weights or self.counts_classes:
            return None
        values = numbers(self.class_weights)
        if not sum(values) > 0 or min(values) < 0:
            raise ConfigError(
                f"--class_weights={self.class_weights}: must be comma-separated numbers of at least 0, one for each "
                "class, not all 0, or balanced, or median_frequency, or nothing"
            )
        return values


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Group):
    """Flags of the optimizer, its learning rates, clipping and weight averaging."""

    optimizer: str = option(
        "adam",
        "`adam`, `adamw`, `sgd`, `lion`, `adafactor`, `lamb`; `muon`: for kernels, AdamW for the rest; "
        "`schedule_free_adamw`: for a constant learning rate; or code, `FILE.py:function`",
        resume="fixed",
        choices=("adam", "adamw", "sgd", "lion", "muon", "schedule_free_adamw", "adafactor", "lamb"),
        code=TRAINING,
    )
    momentum: float = option(0.9, "momentum of --optimizer=sgd", resume="fixed", minimum=0, below=1)
    weight_decay: float = option(
        0.0, "decoupled weight decay, multiplied by the learning rate; not for biases and norms", minimum=0
    )
    learning_rate: float = option(1e-3, "peak learning rate", above=0)
    encoder_learning_rate_factor: float = option(1.0, "learning rate of the encoder relative to the decoder's", above=0)
    unfreeze_encoder_at: int = option(0, "step before which a trained encoder stays frozen", unit="steps", minimum=0)
    learning_rate_schedule: str = option(
        "constant",
        "`constant`; `cosine` and `polynomial`: decay to 0; `step`: drops; or code, `FILE.py:function`",
        choices=("constant", "cosine", "polynomial", "step"),
        code=TRAINING,
    )
    warmup_steps: int = option(0, "length of the learning rate warm-up", unit="steps", minimum=0)
    polynomial_power: float = option(0.9, "exponent of --learning_rate_schedule=polynomial", above=0)
    drop_at: str = option(
        "0.5,0.75", "when --learning_rate_schedule=step drops, as fractions of the run after the warm-up"
    )
    drop_factor: float = option(0.1, "factor of each drop", above=0, below=1)
    clip_norm: float = option(0.0, "largest global gradient norm; 0: no clipping", minimum=0)
    ema_decay: float = option(
        0.0,
        "decay of an exponential moving average of the weights, which then selects the best checkpoint; 0: none",
        resume="fixed",
        minimum=0,
        below=1,
    )

    @property
    def keeps_averages(self) -> bool:
        """Whether averaged weights are kept, which then represent the run."""
        return self.ema_decay > 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.drop_shares()
        if (self.optimizer == "adam" and self.weight_decay) or (self.optimizer == "adamw" and not self.weight_decay):
            raise ConfigError(
                f"--weight_decay={self.weight_decay:g}: must be 0 with --optimizer=adam, above 0 with --optimizer=adamw"
            )

    def drop_shares(self) -> tuple[float, ...]:
        """The fractions of the run at which the learning rate drops."""
        shares = numbers(self.drop_at)
        if not shares or not shares[0] > 0 or not shares[-1] < 1 or list(shares) != sorted(set(shares)):
            raise ConfigError(f"--drop_at={self.drop_at}: must be increasing comma-separated numbers between 0 and 1")
        return shares


@dataclasses.dataclass(frozen=True)
class ComputeConfig(Group):
    """Arithmetic of a step on a device."""

    precision: str = option(
        "float32", "compute dtype of the layers; weights, logits, loss and statistics stay float32", choices=PRECISIONS
    )
    initial_loss_scale: float = option(
        2.0**15, "first loss scale of mixed_float16 or --all_reduce_dtype=float16", minimum=1
    )
    loss_scale_growth_interval: int = option(
        2000, "finite steps after which the loss scale doubles", unit="steps", minimum=1
    )
    micro_batches: int = option(1, "gradient accumulation: slices of each replica's batch, to save memory", minimum=1)
    jit_compile: bool = option(
        False, "compile forward and backward pass with XLA; several replicas need --nosync_batch_norm"
    )
    all_reduce_dtype: str = option(
        "float32",
        "dtype of gradients in the all-reduce: `float32`; `float16`: half the bytes, with a loss scale; needs several "
        "replicas",
        choices=("float32", "float16"),
    )
    all_reduce_bucket: float = option(
        0.0,
        "size of gradient buckets, each all-reduced as soon as the backward pass has computed it, for slow networks "
        "between GPUs; 0: one bucket; no effect with several --micro_batches",
        unit="MB",
        minimum=0,
    )
    tensor_float_32: bool = option(
        True,
        "TensorFloat-32 on Ampere and later GPUs; off under --deterministic",
    )
    peak_tflops: float = option(
        0.0,
        "peak of one device at --precision, for `speed/mfu`; 0: from a table of common GPUs",
        unit="TFLOP/s",
        minimum=0,
    )

    @property
    def bucket_bytes(self) -> int:
        """--all_reduce_bucket in bytes."""
        return int(1e6 * self.all_reduce_bucket)


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Group):
    """Length of the run, and intervals of logging, evaluation and checkpoints."""

    exclusive: ClassVar[tuple[Exclusive, ...]] = (
        Exclusive({"epochs": 0, "train_steps": 0}, lambda epochs, steps: bool(epochs and steps)),
    )

    epochs: int = option(20, "length of the run; excludes --train_steps, the flag given last wins", minimum=0)
    train_steps: int = option(0, "length of the run; 0: --epochs", unit="steps", minimum=0)
    steps_per_loop: int = option(10, "steps per call of the compiled loop", unit="steps", minimum=1)
    summary_every: int = option(20, "interval of training summaries", unit="steps", minimum=1)
    eval_every: int = option(0, "interval of evaluations; 0: one epoch", unit="steps", minimum=0)
    eval_examples: int = option(
        0,
        "number of examples of --eval_split to score, a fixed sample drawn by --seed; 0: all",
        resume="fixed",
        minimum=0,
    )
    eval_at_start: bool = option(False, "also evaluate before the first step, for --init_from")
    patience: int = option(0, "evaluations without a better mean IoU after which the run ends; 0: never", minimum=0)
    patience_before_decay: bool = option(
        False, "allow --patience to end a run before its learning rate has decayed to 0"
    )
    checkpoint_every: int = option(0, "interval of checkpoints; 0: one epoch", unit="steps", minimum=0)
    checkpoint_every_minutes: float = option(
        0.0, "also save when the last checkpoint is older than this; 0: never", unit="minutes", minimum=0
    )
    keep_checkpoints: int = option(3, "number of newest checkpoints to keep", minimum=1)
    sync_checkpoints: bool = option(False, "write checkpoints before training continues instead of in a thread")
    histogram_every: int = option(
        0, "interval of weight and gradient histograms; 0: one epoch", unit="steps", minimum=0
    )
    log_every: int = option(
        20, "interval of progress lines if the output is not a terminal", unit="steps",
        minimum=1,
    )  # fmt: skip
    profile_steps: str = option("", "steps to profile for TensorBoard, such as `100:110`")

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
    """Work directory, seed, handling of errors."""

    workdir: str = option("", "work directory; empty: a new folder in `runs/`")
    seed: int = option(
        0, "seed of initial weights, example order and augmentation", resume="fixed", minimum=0, maximum=2**32 - 1
    )
    example_order: int | None = option(
        None,
        "version of the example order: `2`; `1`: that of earlier versions of petseg; empty: `2`, or as the "
        "run in --workdir",
        kind=int,
        resume="fixed",
        minimum=1,
        maximum=2,
    )
    on_nonfinite: str = option(
        "halt",
        "if loss or gradients are not finite: `halt` the run, `skip` the step, or `restore` the last checkpoint's "
        "weights and continue",
        choices=("halt", "skip", "restore"),
    )
    nonfinite_limit: int = option(
        10, "maximum number of steps that --on_nonfinite=skip or restore handles before the run ends", minimum=0
    )
    quiet: bool = option(False, "print only warnings and errors")
    deterministic: bool = option(False, "op determinism: the same run gives the same bits; slower on a GPU")
    debug: bool = option(False, "show tracebacks of one-line errors, and TensorFlow's messages at the start")


@dataclasses.dataclass(frozen=True)
class Config:
    """All flags of a training run. Raises ConfigError if two fields contradict each other."""

    has_presets: ClassVar[bool] = True  # its flags may come from --preset=NAME

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    compute: ComputeConfig = ComputeConfig()
    distribution: DistributionConfig = dataclasses.field(default_factory=DistributionConfig)
    schedule: ScheduleConfig = ScheduleConfig()
    extension: ExtensionConfig = dataclasses.field(default_factory=ExtensionConfig)
    runtime: RuntimeConfig = RuntimeConfig()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not isinstance(value := getattr(self, field.name), Group):
                raise ConfigError(
                    f"Config: got {value!r} for {field.name}; make it with Config.of(flag=value) or Config.preset(name)"
                )
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
                f"--learning_rate_schedule={self.optimizer.learning_rate_schedule}, because scores rise most after "
                "the decay, and the run would end before; --patience_before_decay allows it"
            )
        self.augmentation.check_data(self.data)
        for name in ("network", "inner_size"):
            if self.augmentation.crop_size and getattr(model, name):
                raise ConfigError(
                    f"--crop_size={self.augmentation.crop_size} and --{name}={getattr(model, name)}: must not be given "
                    "together, because such a network has one input size"
                )
        for name, nothing in (("unfreeze_encoder_at", 0), ("encoder_learning_rate_factor", 1)):
            value = getattr(self.optimizer, name)
            if value != nothing and model.first_trained == "none":
                raise ConfigError(f"--{name}={value}: must be {nothing} without --train_encoder")

    @property
    def uses_tensor_float_32(self) -> bool:
        """Whether GPUs may use TensorFloat-32, which rounds to 10 bits; never if deterministic."""
        return self.compute.tensor_float_32 and not self.runtime.deterministic

    @classmethod
    def of(cls, **flags: Any) -> "Config":
        """Creates a config from flags: `Config.of(dataset="synthetic_pets", image_size=64, epochs=3)`.

        Flags that take code also take the function or class itself: `Config.of(loss=my_loss)`.

        Raises:
          PetsegError: as on the command line, and with the same text.
        """
        return command_line.parse(["petseg.Config", *options.as_arguments(flags)], cls)

    @classmethod
    def preset(cls, name: str, **flags: Any) -> "Config":
        """Returns the config of a preset with some flags changed: `Config.preset("best", epochs=5)`.

        Raises PetsegError if there is no such preset, or as `of`.
        """
        return cls.of(preset=name, **flags)

    def changed(self, **groups: Mapping[str, Any]) -> "Config":
        """Returns a config with other values: `config.changed(runtime={"workdir": "runs/pets"})`.

        A value also switches off a flag that it excludes: `config.changed(schedule={"train_steps": 100})` sets the
        epochs to 0. Raises ConfigError if a value is invalid, or two values contradict each other.
        """
        values = {name: getattr(self, name).changed(**changes) for name, changes in groups.items()}
        return dataclasses.replace(self, **values)
