"""Flags of eval.py, declared as in `train_config`."""

import dataclasses
import os

from petseg.config import PRECISIONS, DataConfig, DistributionConfig
from petseg.config.data_config import CACHES
from petseg.config.options import Group, option, sides
from petseg.errors import ConfigError

EXPORT_FORMATS = ("saved_model", "keras", "h5", "tflite", "tflite_int8", "onnx", "onnx_half", "weights")
PACKAGED, PACKED_SUFFIX = "pets", ".safetensors"
RUNTIMES = ("auto", "tensorflow", "onnx")
MASK_VALUES = ("ids", "own")
PROBABILITIES = ("none", "png", "npz")
PREDICTIONS = "predictions"
SMALLEST_TILE = 32
OF_PREDICTIONS = ("cutout", "skip_existing", "runtime", "mask_values", "probabilities", "output_dir")
OF_SCORES = (
    "split", "weight_files", "weight_feature", "score_weights", "eval_examples", "resolution", "csv",
    "allow_training_images",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ScoreConfig(Group):
    """What to score, predict or export; everything else comes from the work directory."""

    workdir: str = option(
        "",
        "work directory of a run; several (comma-separated, a folder or a glob) are scored as runs of one "
        "recipe; or a file of --export=weights",
    )
    pretrained: bool = option(False, "use the packaged model of cats and dogs instead of a --workdir")
    ensemble: bool = option(False, "average the class probabilities of the runs in --workdir, as one model")
    checkpoint: str = option("latest", "`latest`, `best`, `all`, or a checkpoint's path", required=True)
    split: str = option("", "TFDS split to score; empty: the run's --eval_split")
    data_dir: str = option("", "folder of the data set; empty: the run's --data_dir")
    weight_files: str = option("", "pattern of weight maps, as in train.py; empty: the run's; `none`: score without")
    weight_feature: str = option("", "TFDS feature of weight maps; empty: the run's; `none`: score without")
    score_weights: bool = option(False, "weight pixels by the weight maps in scores too, as in train.py")
    eval_examples: int = option(
        0,
        "number of examples of --split to score, a sample drawn by the run's --seed (the smallest of several); 0: all",
        minimum=0,
    )
    batch_size: int = option(0, "examples per step; 0: as in the run", minimum=0)
    precision: str = option("run", "compute dtype of the layers; `run`: as in the run", choices=("run", *PRECISIONS))
    cache: str = option(
        "run", "`memory`, `disk` or `none`, as in train.py; `run`: as in the run", choices=("run", *CACHES)
    )
    cache_dir: str = option("", "folder of --cache=disk; empty: the run's")
    resolution: str = option(
        "model",
        "`model`: score at the run's --image_size; `native`: also at each image's own size against the "
        "original mask, as papers report",
        choices=("model", "native"),
    )
    tile: str = option(
        "",
        "tile size of --predict and --resolution=native: a side or `HEIGHT,WIDTH`; `0`: whole images; "
        "empty: --image_size for a run with --resize=crop, else whole images",
        unit="pixels",
    )
    ema: bool = option(False, "use the averaged weights of a run with --ema_decay")
    flip_tta: bool = option(False, "average the probabilities of each image and its mirror image")
    logit_adjustment: bool = option(
        False, "divide class probabilities by the run's --class_weights, which make rare classes too probable"
    )
    csv: str = option("", "CSV file of scores per image")
    compare: str = option("", "work directory of another run, or several as in --workdir, to score and compare with")
    watch: bool = option(False, "score each new checkpoint until the run is complete")
    watch_timeout: float = option(3600.0, "maximum wait of --watch for the next checkpoint", unit="seconds", minimum=0)
    watch_interval: float = option(10.0, "polling interval of --watch", unit="seconds", above=0)
    predict: str = option(
        "", "predict masks of photographs instead of scoring: a file, a glob, or a folder with its subfolders"
    )
    output_dir: str = option("", f"output folder of --predict or --export; empty: `{PREDICTIONS}` for --predict")
    export: str = option("", "export the model instead of scoring: some of " + ", ".join(EXPORT_FORMATS))
    cutout: bool = option(False, "with --predict, also write the foreground on a transparent background")
    mask_values: str = option(
        "ids",
        "what the masks of --predict hold: `ids`: class ids with a palette; `own`: the values or colours "
        "of the data set's masks",
        choices=MASK_VALUES,
    )
    probabilities: str = option(
        "none",
        "with --predict, also write class probabilities: `png`: 8 bits (255 is 1), a file per class; `npz`: float32; "
        "`none`",
        choices=PROBABILITIES,
    )
    threshold: float = option(
        0.0,
        "with two classes, predict the foreground where its probability is at least this; 0: the most probable class",
        minimum=0,
        below=1,
    )
    skip_existing: bool = option(False, "with --predict, skip photographs whose outputs exist")
    runtime: str = option(
        "auto",
        "runtime of --predict: `tensorflow`; `onnx`: on the CPU; `auto`: onnx for a packaged model, else tensorflow",
        choices=RUNTIMES,
    )
    allow_training_images: bool = option(False, "score a split even if the run was trained on part of it")
    allow_code: bool = option(
        False, "run the Python code that the run's flags name (--network, --loss, ...); only if you trust it"
    )
    debug: bool = option(False, "show the traceback of one-line errors")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.workdir.strip()) == self.pretrained:
            raise ConfigError(f"--workdir={self.workdir}: must be the work directory of a run, or pass --pretrained")
        alone = ("watch", "compare", "csv", "ema", "logit_adjustment")
        is_one = self.checkpoint in ("latest", "best") and not any(getattr(self, name) for name in alone)
        if self.packed and not is_one:
            raise ConfigError(
                f"--workdir={self.packed}: is one checkpoint with one kind of weights; must be a work directory for "
                f"{', '.join(f'--{name}' for name in alone)} or --checkpoint={self.checkpoint}"
            )
        self._check_ensemble()
        if self.watch and self.checkpoint != "latest":
            raise ConfigError(
                f"--watch and --checkpoint={self.checkpoint}: --watch scores every new one; drop one flag"
            )
        if (self.predict and self.export) or (self.export and not self.output_dir):
            raise ConfigError(
                f"--predict={self.predict}, --export={self.export} and --output_dir={self.output_dir}: --export must "
                "come with --output_dir, and without --predict"
            )
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        misplaced, rule = (OF_SCORES, "without") if self.predict else (OF_PREDICTIONS, "with")
        for name in misplaced:
            value = getattr(self, name)
            if value != defaults[name] and not (name == "output_dir" and self.export):
                raise ConfigError(f"--{name}={value}: must come {rule} --predict")
        for name in (*OF_SCORES[1:], "flip_tta") if self.export else ():
            if (value := getattr(self, name)) != defaults[name]:
                raise ConfigError(f"--{name}={value}: must come without --export, where it has no effect")
        if (self.predict or self.export) and (self.watch or self.compare or self.checkpoint == "all"):
            raise ConfigError("--predict and --export: --checkpoint must be one, without --watch and --compare")
        if self.export and self.threshold:
            raise ConfigError(
                f"--threshold={self.threshold}: must be 0 with --export, whose masks are most probable classes"
            )
        unknown = [name for name in self.export_formats() if name not in EXPORT_FORMATS]
        if unknown:
            raise ConfigError(f"--export={unknown[0]}: no such format; must be some of {', '.join(EXPORT_FORMATS)}")
        if any(part.strip().endswith(PACKED_SUFFIX) for part in self.compare.split(",")):
            raise ConfigError(f"--compare={self.compare}: is a file of packed weights; must be a work directory")
        if self.compare and (self.watch or self.checkpoint == "all"):
            raise ConfigError(f"--compare={self.compare}: compares one checkpoint, not --watch or --checkpoint=all")

        self._given_tile()
        if self.tile and not self.predict and self.resolution != "native":
            raise ConfigError(f"--tile={self.tile}: must come with --predict or --resolution=native")

    def _check_ensemble(self) -> None:
        if not self.ensemble:
            return
        if self.pretrained or self.checkpoint not in ("latest", "best"):
            raise ConfigError(
                f"--ensemble: must come with several runs in --workdir and with --checkpoint=latest or best; got "
                f"--workdir={self.workdir} and --checkpoint={self.checkpoint}"
            )
        given = {"watch": self.watch, "export": bool(self.export), "runtime": self.runtime == "onnx"}
        for name in (name for name, is_given in given.items() if is_given):
            raise ConfigError(f"--{name}={getattr(self, name)}: must not come with --ensemble")

    @property
    def packed(self) -> str:
        """The packed weights to use instead of a work directory: the packaged model's name or a file; else empty."""
        if self.pretrained or (self.workdir == PACKAGED and not os.path.lexists(PACKAGED)):
            return PACKAGED
        return self.workdir if self.workdir.endswith(PACKED_SUFFIX) and not self.ensemble else ""

    @property
    def prediction_dir(self) -> str:
        """Output folder of --predict."""
        return self.output_dir or PREDICTIONS

    def tile_size(self, data: DataConfig) -> tuple[int, int] | None:
        """Height and width of the tiles for predictions of a run; None for whole images.

        Raises ConfigError if the network of a run that crops cannot take such tiles.
        """
        if data.resize != "crop":
            return self._given_tile()
        tile = self._given_tile() if self.tile else data.size
        if tile is None or tile[0] > data.size[0] or tile[1] > data.size[1]:
            raise ConfigError(
                f"--tile={self.tile}: the run has --resize=crop, so its network does not resize images; must be at "
                f"most its --image_size={data.image_size}, and not 0"
            )
        return tile

    def _given_tile(self) -> tuple[int, int] | None:
        """Height and width in --tile; None for whole images."""
        if self.tile in ("", "0"):
            return None
        height, width = sides(self.tile)
        if min(height, width) < SMALLEST_TILE:
            raise ConfigError(
                f"--tile={self.tile}: must be a whole number of at least {SMALLEST_TILE}, or two such numbers, "
                "HEIGHT,WIDTH, or 0"
            )
        return height, width

    def export_formats(self) -> tuple[str, ...]:
        """The formats to export."""
        return tuple(name.strip() for name in self.export.split(",") if name.strip())


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """All flags of eval.py."""

    score: ScoreConfig
    distribution: DistributionConfig = dataclasses.field(default_factory=DistributionConfig)
