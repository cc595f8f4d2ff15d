"""Flags of the data: data set, classes, image size, cache."""

import dataclasses
import math
import re
from pathlib import Path

from petseg import custom_code
from petseg.config import folds, image_spec, presets
from petseg.config.image_spec import DTYPES, MOST_CHANNELS, ImageSpec
from petseg.config.options import SCORING, Group, option, sides
from petseg.errors import ConfigError

CACHES = ("memory", "disk", "none")
ON_BAD_EXAMPLE = ("stop", "ignore")
DECODES = ("full", "scaled")
RESIZES = ("stretch", "letterbox", "crop")
PAGES = ("refuse", "examples")
AUTO = "auto"
RANGES = {"uint8": "0,255", "uint16": "0,65535", "float32": "0,1"}  # where nothing was measured
FOLDER = "folder"
WEIGHT_SCALES = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}  # of weight maps: the number that counts as 1
NO_WEIGHTS = "none"  # value of --weight_files and --weight_feature
CACHE_DIR = "~/.cache/petseg"
TFDS_NAMESPACES = ("huggingface:", "kaggle:")  # names of data sets, not of modules
DATASET_NAME = re.compile(r"\w+(/\w[\w+.-]*)?(:(\d+|\*)(\.(\d+|\*)){2})?", re.ASCII)


def check_dataset_name(dataset: str, others: str = "") -> None:
    """Raises ConfigError for names that TFDS would pass to other libraries or to builders as arguments.

    A name such as `huggingface:owner/name` in another person's config.json could run code. `others` are further
    allowed values, for the error.
    """
    if not DATASET_NAME.fullmatch(dataset):
        raise ConfigError(f"--dataset={dataset}: must be the name of a TFDS data set, NAME[/CONFIG][:VERSION]{others}")


def picture_size(flag: str, value: str) -> tuple[int, int]:
    """Parses the height and width of a flag, in pixels. Raises ConfigError if the value is not a valid size."""
    height, width = sides(value)
    if min(height, width) < 32 or height % 32 or width % 32:
        raise ConfigError(
            f"--{flag}={value}: must be a whole number of at least 32, divisible by 32, or two such numbers, "
            "HEIGHT,WIDTH"
        )
    return height, width


def named_splits(split: str) -> frozenset[str]:
    """The names in a TFDS split, without slices and folds: train and val for `train[:90%]+val`."""
    return frozenset(part.split("[")[0].strip() for part in split.split(folds.MARK)[0].split("+"))


@dataclasses.dataclass(frozen=True)
class DataConfig(Group):
    """Which examples, at which size."""

    dataset: str = option(
        "oxford_iiit_pet",
        "TFDS data set; `folder`: image and mask files in --data_dir; `synthetic_pets`: drawn; `FILE.py:function`: "
        "code of your own, (--data_dir, split) -> examples",
        resume="fixed",
        required=True,
        code=SCORING,
    )
    data_dir: str = option(
        "", "folder of prepared TFDS data sets (empty: TFDS's default), or of the images of --dataset=folder"
    )
    classes: str = option(
        "", "JSON file of the classes; `camvid_classes.json` comes with petseg; empty: the data set's own"
    )
    image_files: str = option(
        "",
        "pattern of the images of --dataset=folder below --data_dir, such as `{split}/*.jpg`; empty: "
        "`images/*` or `images/{split}/*`",
    )
    mask_files: str = option(
        "",
        "pattern of their masks, such as `{split}annot/{name}.png`; `{name}`: the image file without its "
        "suffix; empty: `masks/{name}.png` or `masks/{split}/{name}.png`",
    )
    weight_files: str = option(
        "",
        "pattern of weight maps, such as `weights/{split}/{name}.png`: a grey file for each mask, which multiplies the "
        "weights of its pixels; empty: none; `none`: ignores those of user code",
    )
    image_feature: str = option("image", "TFDS feature of the images", required=True)
    mask_feature: str = option("segmentation_mask", "TFDS feature of the masks", required=True)
    weight_feature: str = option(
        "", "TFDS feature of weight maps, uint8, uint16 or float32 [H, W] or [H, W, 1]; empty: none", resume="fixed"
    )
    weight_scale: float = option(
        0.0, "value in weight maps that counts as 1; 0: 255 for 8 bits, 65535 for 16 bits, 1 for floats", minimum=0
    )
    score_weights: bool = option(
        False, "weight pixels by the weight maps in scores too, not only in the loss", resume="fixed"
    )
    channels: int = option(
        0,
        "input channels of the network; 0: as in the data (grey as RGB); 4: RGB and alpha, or four bands",
        resume="fixed",
        minimum=0,
        maximum=MOST_CHANNELS,
    )
    image_dtype: str = option(
        AUTO,
        "pixel dtype of the image files: `uint8`, `uint16`, `float32` (32-bit integers too); `auto`: as found",
        resume="fixed",
        choices=(AUTO, *DTYPES),
    )
    intensity_range: str = option(
        AUTO,
        "pixel values that are scaled to 0 and 255: `LOW,HIGH`, or a pair for each channel; `auto`: 0 and 255 for 8 "
        "bits, else percentiles of the training split",
        resume="fixed",
        required=True,
    )
    shown_channels: str = option(
        "", "channels shown in figures, counted from 0: one, or three as red, green and blue; empty: the first three"
    )
    pages: str = option(
        "refuse",
        "TIFF stacks and animations in --dataset=folder: `refuse`; `examples`: each page is an example, such as "
        "`scan.tif#3`",
        resume="fixed",
        choices=PAGES,
    )
    train_split: str = option(
        "train",
        "TFDS split to train on; slices such as `train[:90%]` work, and folds: `train@without_fold1of5`",
        resume="fixed",
        required=True,
    )
    eval_split: str = option(
        "test", "TFDS split to evaluate on; of folds, `train@fold1of5`", resume="fixed", required=True
    )
    group_files: str = option(
        "",
        "pattern of the examples' names, such as `{group}_*`: examples of one group (patient, video) stay in one fold; "
        "empty: no groups",
        resume="fixed",
    )
    fold_seed: int = option(0, "seed of the assignment to folds", resume="fixed", minimum=0)
    image_size: str = option(
        "128",
        "input size of the network: a side or `HEIGHT,WIDTH`, multiples of 32",
        unit="pixels",
        resume="fixed",
        required=True,
    )
    resize: str = option(
        "stretch",
        "`stretch` to --image_size; `letterbox`: keep the aspect ratio, pad with ignored pixels; `crop`: keep"
        " the scale, train on random crops",
        resume="fixed",
        choices=RESIZES,
    )
    decode: str = option(
        "full",
        "decoding of training JPEGs: `full`; `scaled`: at 1/2, 1/4 or 1/8 size where --image_size allows, which is "
        "faster",
        resume="fixed",
        choices=DECODES,
    )
    batch_size: int = option(64, "global batch size over all replicas", resume="fixed", minimum=1)
    cache: str = option(
        "memory",
        "where decoded examples are kept: `memory`; `disk`: in --cache_dir; `none`: decodes each batch from "
        "array_record files",
        choices=CACHES,
    )
    cache_dir: str = option("", f"folder of --cache=disk, shared with later runs; empty: `{CACHE_DIR}`")
    on_bad_example: str = option(
        "stop",
        "under --cache=none, undecodable images and invalid masks: `stop` the run; `ignore`: log them, without weight, "
        "up to 1% of the examples",
        choices=ON_BAD_EXAMPLE,
    )
    data_service: str = option(
        "",
        "addresses of `python -m petseg.data.service` that make training batches: `grpc://HOST:PORT`, comma-separated; "
        "needs --cache=disk in a shared folder",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not custom_code.is_reference(self.dataset) or self.dataset.startswith(TFDS_NAMESPACES):
            check_dataset_name(self.dataset, f", {FOLDER}, or {custom_code.FORM}")
        self.size  # noqa: B018 (raises)
        self._check_folder()
        self._check_images()
        self._check_weights()
        self._check_folds()
        if self.service_addresses() and self.cache != "disk":
            raise ConfigError(
                f"--data_service={self.data_service}: with it --cache must be disk, in a --cache_dir that the "
                f"service sees too; got --cache={self.cache}"
            )
        if self.decode == "scaled" and self.resize == "crop":
            raise ConfigError(
                "--decode=scaled: must be full with --resize=crop, which needs pictures at the size that they have"
            )
        if self.on_bad_example == "ignore" and self.cache != "none":
            raise ConfigError(
                f"--on_bad_example=ignore: with it --cache must be none, since otherwise every example is checked "
                f"before the first step; got --cache={self.cache}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input, in pixels."""
        return picture_size("image_size", self.image_size)

    @property
    def image_spec(self) -> ImageSpec:
        """How images reach the network; what is not resolved yet is as in 8-bit RGB images."""
        dtype = "uint8" if self.image_dtype == AUTO else self.image_dtype
        text = RANGES[dtype] if self.intensity_range == AUTO else self.intensity_range
        found = image_spec.parse_range(text)
        assert found is not None  # checked
        shown = tuple(map(int, self.shown_channels.split(","))) if self.shown_channels else ()
        return ImageSpec(self.channels or 3, dtype, *found, shown)

    def _check_images(self) -> None:
        """Raises ConfigError for an invalid intensity range or invalid shown channels."""
        text, channels = self.intensity_range, self.channels
        if text != AUTO and image_spec.parse_range(text, channels) is None:
            raise ConfigError(
                f"--intensity_range={text}: must be auto, or LOW,HIGH with LOW below HIGH, or such a pair for each of "
                f"the {channels or ''} channels".replace("  ", " ")
            )
        pattern = r"\d+(,\d+,\d+)?"
        known = channels or MOST_CHANNELS
        if (shown := self.shown_channels) and not (
            re.fullmatch(pattern, shown) and max(map(int, shown.split(","))) < known
        ):
            raise ConfigError(
                f"--shown_channels={shown}: must be a channel, or three, comma-separated, each 0 to {known - 1}"
            )

    @property
    def named_splits(self) -> frozenset[str]:
        """The names of the splits in --train_split and --eval_split."""
        return named_splits(self.train_split) | named_splits(self.eval_split)

    @property
    def classes_file(self) -> Path:
        """The file of --classes; those in petseg/presets are found by name."""
        return presets.file_at(self.classes)

    def _check_folder(self) -> None:
        """Raises ConfigError if the patterns of images and masks contradict other flags."""
        if self.dataset != FOLDER:
            if self.pages != "refuse":
                raise ConfigError(f"--pages={self.pages}: must be refuse without --dataset={FOLDER}")
            for name in ("image_files", "mask_files", "weight_files"):
                if (value := getattr(self, name)) and not (name == "weight_files" and self._drops_weights):
                    raise ConfigError(f"--{name}={value}: must be empty without --dataset={FOLDER}")
        elif bool(self.image_files) != bool(self.mask_files):
            raise ConfigError(
                f"--image_files={self.image_files} and --mask_files={self.mask_files}: both must be given, or neither"
            )
        elif self.mask_files and "{name}" not in self.mask_files:
            raise ConfigError(f"--mask_files={self.mask_files}: must contain {{name}}")
        if self.dataset == FOLDER or custom_code.is_reference(self.dataset):
            for name in ("image_feature", "mask_feature"):
                if (value := getattr(self, name)) != getattr(DataConfig, name):
                    raise ConfigError(
                        f"--{name}={value}: must not come with --dataset={self.dataset}, which is not TFDS"
                    )

    @property
    def has_weights(self) -> bool:
        """Whether weight maps may come with the data; only code itself knows."""
        given = bool(self.weight_files or self.weight_feature)
        return (given or custom_code.is_reference(self.dataset)) and not self._drops_weights

    @property
    def _drops_weights(self) -> bool:
        """Whether the weight maps of user code are not used."""
        return self.weight_files == NO_WEIGHTS and custom_code.is_reference(self.dataset)

    @property
    def example_bytes(self) -> int:
        """Bytes that an image with its mask and weight map, of up to 32 bits, has in a batch."""
        return (self.image_spec.bytes_per_pixel + 4 * self.has_weights) * math.prod(self.size)

    def _check_weights(self) -> None:
        """Raises ConfigError if the flags of weight maps contradict others."""
        if self.weight_files and "{name}" not in self.weight_files and not self._drops_weights:
            raise ConfigError(f"--weight_files={self.weight_files}: must contain {{name}}")
        if self.weight_feature and self.dataset == FOLDER:
            raise ConfigError(
                f"--weight_feature={self.weight_feature}: must be empty with --dataset={FOLDER}, where --weight_files "
                "says where weight maps are"
            )
        given = {f"weight_scale={self.weight_scale:g}": self.weight_scale, "score_weights": self.score_weights}
        for flag in (flag for flag, is_given in given.items() if is_given and not self.has_weights):
            raise ConfigError(f"--{flag}: must come with --weight_files or --weight_feature")

    def _check_folds(self) -> None:
        """Raises ConfigError for a fold that cannot be, or a pattern of groups without a group."""
        for flag in ("train_split", "eval_split"):
            try:
                folds.parse(getattr(self, flag))
            except ConfigError as error:
                raise ConfigError(f"--{flag}={error}") from error
        if self.group_files and "{group}" not in self.group_files:
            raise ConfigError(f"--group_files={self.group_files}: must contain {{group}}")

    def check_data_dir(self) -> None:
        """Raises ConfigError if --dataset=folder comes without --data_dir.

        Not part of the other checks, because packed weights of such a run have a config without paths.
        """
        if self.dataset == FOLDER and not self.data_dir:
            raise ConfigError(f"--dataset={FOLDER}: --data_dir must be the folder of the pictures")

    def service_addresses(self) -> tuple[str, ...]:
        """The HOST:PORT addresses in --data_service."""
        if not self.data_service:
            return ()
        found = [re.fullmatch(r"grpc://([^\s:/]+:\d+)", part) for part in self.data_service.split(",")]
        addresses = tuple(match[1] for match in found if match and int(match[1].rpartition(":")[2]) < 2**16)
        if len(set(addresses)) < len(found):
            raise ConfigError(
                f"--data_service={self.data_service}: must be grpc://HOST:PORT, or several different ones, separated "
                "by commas"
            )
        return addresses
