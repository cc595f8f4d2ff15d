"""Flags of augmentation: a named set of changes, and single strengths that differ from it."""

import dataclasses
from typing import Any

from petseg.config.data_config import DataConfig, picture_size
from petseg.config.options import TRAINING, Group, option
from petseg.errors import ConfigError

# The strengths that --augment sets. A strength of 0 (of a crop: 1) switches its change off.
SETS: dict[str, dict[str, float]] = {
    "none": {"crop_area": 1.0, "crop_area_max": 1.0, "crop_aspect": 1.0},
    "flip": {"flip": 0.5},
    "standard": {
        "flip": 0.5, "crop_area": 0.5, "crop_aspect": 1.2, "rotation": 10.0,
        "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.02,
    },
    "strong": {
        "flip": 0.5, "crop_area": 0.25, "crop_aspect": 1.33, "rotation": 20.0,
        "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.05, "cutout": 0.25,
    },
}  # fmt: skip
LARGEST_AREA = 16.0  # a quarter of the scale, below which bilinear resampling without antialiasing skips pixels


def _strength(help: str, **allowed: Any) -> Any:
    return option(None, help, kind=float, **allowed)


@dataclasses.dataclass(frozen=True)
class AugmentationConfig(Group):
    """Random changes to training examples."""

    augment: str = option(
        "flip",
        "set of augmentations, which the next flags override: `none`; `flip`; `standard`: also crops, small rotations "
        "and colours; `strong`: more, and cutout; or code, `FILE.py:function`, applied last",
        choices=tuple(SETS),
        code=TRAINING,
    )
    flip: float | None = _strength("probability of a horizontal flip", minimum=0, maximum=1)
    vertical_flip: float | None = _strength("probability of a vertical flip", minimum=0, maximum=1)
    quarter_turns: float | None = _strength(
        "probability of a turn by a random multiple of 90 degrees; needs a square --image_size",
        minimum=0,
        maximum=1,
    )
    crop_area: float | None = _strength(
        "random crops have areas between this and --crop_area_max, as fractions of the image area; above 1: zoom out",
        above=0,
        maximum=LARGEST_AREA,
    )
    crop_area_max: float | None = _strength(
        "the other bound of --crop_area; empty: 1, the whole image", above=0, maximum=LARGEST_AREA
    )
    crop_aspect: float | None = _strength(
        "maximum factor by which a crop's aspect ratio differs from the image's", minimum=1
    )
    crop_size: str = option(
        "",
        "size of training crops; empty: --image_size, which evaluation and prediction always use",
        unit="pixels",
    )
    crop_focus: float | None = _strength(
        "fraction of the random crops (--resize=crop, --crop_area) that are centred on a pixel of a rare class",
        minimum=0,
        maximum=1,
    )
    rotation: float | None = _strength("maximum rotation, in both directions", unit="degrees", minimum=0, maximum=180)
    brightness: float | None = _strength("maximum relative change", minimum=0, maximum=1)
    contrast: float | None = _strength("maximum relative change", minimum=0, maximum=1)
    saturation: float | None = _strength("maximum relative change, RGB images only", minimum=0, maximum=1)
    hue: float | None = _strength("maximum hue shift, RGB images only", unit="turns", minimum=0, maximum=0.5)
    cutout: float | None = _strength("side of a grey square, as a fraction of the image's side", minimum=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_size:
            picture_size("crop_size", self.crop_size)

    def strengths(self) -> dict[str, float]:
        """The strength of each change by field name: as given, else as in the set of --augment."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if name != "crop_size"}
        chosen = {**dict.fromkeys(given, 0.0), **SETS["none"], **SETS.get(given.pop("augment"), {})}
        return {name: chosen[name] if value is None else value for name, value in given.items()}

    def training_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of training images in pixels, for an image size."""
        return picture_size("crop_size", self.crop_size) if self.crop_size else image_size

    def check_data(self, data: DataConfig) -> None:
        """Raises ConfigError for changes that are impossible, or would do nothing, with the images of a config."""
        strength = self.strengths()
        if strength["quarter_turns"] and data.size[0] != data.size[1]:
            raise ConfigError(
                f"--quarter_turns={strength['quarter_turns']:.10g}: --image_size must be a square with it, got "
                f"{data.image_size}; --flip and --vertical_flip turn by 180 degrees together, --rotation by any angle"
            )
        smallest = min(strength["crop_area"], strength["crop_area_max"])
        if strength["crop_focus"] and data.resize != "crop" and smallest >= 1:
            raise ConfigError(
                f"--crop_focus={strength['crop_focus']:.10g}: there are no random crops to centre; must be 0, or with "
                "--resize=crop or a --crop_area below 1"
            )
