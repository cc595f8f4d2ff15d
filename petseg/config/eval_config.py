"""The flags of eval.py: one field of a frozen dataclass is one flag, as in `train_config`."""

import dataclasses

from petseg.config import PRECISIONS, DistributionConfig
from petseg.config.options import Group, option
from petseg.config.train_config import CACHES
from petseg.errors import ConfigError

EXPORT_FORMATS = ("saved_model", "keras", "h5", "tflite", "tflite_int8", "onnx")


@dataclasses.dataclass(frozen=True)
class ScoreConfig(Group):
    """What to score; everything else comes from the work directory."""

    workdir: str = option("", "work directory of a training run", required=True)
    checkpoint: str = option("latest", "`latest`, `best`, `all`, or the path of a checkpoint", required=True)
    split: str = option("", "TFDS split to score; empty: the run's --eval_split")
    data_dir: str = option("", "folder of prepared TFDS data sets; empty: the run's --data_dir")
    batch_size: int = option(0, "examples per step; 0: the run's --batch_size", unit="examples", minimum=0)
    precision: str = option("run", "dtype of the layers' arithmetic; `run`: the run's", choices=("run", *PRECISIONS))
    cache: str = option(
        "run",
        "where decoded examples wait, as train.py's --cache; `run`: as in the run",
        choices=("run", *CACHES),
    )
    cache_dir: str = option("", "folder of --cache=disk; empty: the run's")
    resolution: str = option(
        "model",
        "`native` also scores at each image's own size, against the mask as it was drawn, which is what papers report",
        choices=("model", "native"),
    )
    ema: bool = option(False, "use the averaged weights of a run with --ema_decay")
    flip_tta: bool = option(False, "average the probabilities of each image and of its mirror image")
    csv: str = option("", "file for a row of scores for each image; empty: none")
    compare: str = option("", "work directory of another run, to score too: is this one really better? empty: none")
    watch: bool = option(False, "wait for new checkpoints, score each once, until the run is complete")
    watch_timeout: float = option(3600.0, "how long --watch waits for the next checkpoint", unit="seconds", minimum=0)
    watch_interval: float = option(10.0, "how often --watch looks", unit="seconds", above=0)
    predict: str = option("", "write masks for photographs instead: a glob, a file or a folder; empty: score")
    output_dir: str = option("", "folder for what --predict or --export writes")
    export: str = option(
        "", "write the model for elsewhere instead: some of " + ",".join(EXPORT_FORMATS) + "; empty: do not"
    )
    cutout: bool = option(False, "with --predict, also write the pet with the rest transparent")
    allow_training_images: bool = option(False, "score a split even if the run trained on some of it")
    allow_code: bool = option(False, "run the Python code of a run's own --network; whose work directory is it?")
    debug: bool = option(False, "show the traceback of an error that is otherwise one line")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.watch and self.checkpoint != "latest":
            raise ConfigError(f"--watch and --checkpoint={self.checkpoint}: --watch scores whatever comes; drop one")
        if (bool(self.predict) + bool(self.export)) != bool(self.output_dir):
            raise ConfigError(
                f"--predict={self.predict}, --export={self.export} and --output_dir={self.output_dir}: "
                "--output_dir must come with one of the other two, and one of them with it"
            )
        if self.output_dir and (self.watch or self.compare or self.checkpoint == "all"):
            raise ConfigError("--predict and --export: --checkpoint must be one, without --watch and --compare")
        unknown = [name for name in self.export_formats() if name not in EXPORT_FORMATS]
        if unknown:
            raise ConfigError(f"--export={unknown[0]}: no such format; must be some of {', '.join(EXPORT_FORMATS)}")
        if self.compare and (self.watch or self.checkpoint == "all"):
            raise ConfigError(f"--compare={self.compare}: compares one checkpoint, not --watch or --checkpoint=all")

    def export_formats(self) -> tuple[str, ...]:
        """The formats to export."""
        return tuple(name.strip() for name in self.export.split(",") if name.strip())


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """All that eval.py is asked."""

    score: ScoreConfig
    distribution: DistributionConfig = dataclasses.field(default_factory=DistributionConfig)
