"""Flags of augmentation: a named set of changes, and single strengths that differ from it."""

import dataclasses
from typing import Any

from petseg.config.options import TRAINING, Group, option

# The strengths that --augment sets. A strength of 0 (of a crop: 1) switches its change off.
SETS: dict[str, dict[str, float]] = {
    "none": {"crop_area": 1.0, "crop_aspect": 1.0},
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


def _strength(help: str, **allowed: Any) -> Any:
    return option(None, help, kind=float, **allowed)


@dataclasses.dataclass(frozen=True)
class AugmentationConfig(Group):
    """Random changes to training examples."""

    augment: str = option(
        "flip",
        "set of augmentations, which the next flags override: `none`; `flip`; `standard`: also crops, small "
        "rotations and colours; `strong`: more of these, and cutout; or code, `FILE.py:function`, which then comes "
        "after what the next flags switch on",
        choices=tuple(SETS),
        code=TRAINING,
    )
    flip: float | None = _strength("probability of a horizontal flip", minimum=0, maximum=1)
    crop_area: float | None = _strength("smallest crop, as a share of the image's area", above=0, maximum=1)
    crop_aspect: float | None = _strength(
        "largest factor by which a crop is wider or narrower than the image", minimum=1
    )
    rotation: float | None = _strength("largest rotation, either way", unit="degrees", minimum=0, maximum=180)
    brightness: float | None = _strength("largest relative change", minimum=0, maximum=1)
    contrast: float | None = _strength("largest relative change", minimum=0, maximum=1)
    saturation: float | None = _strength("largest relative change", minimum=0, maximum=1)
    hue: float | None = _strength("largest hue shift, either way", unit="turns", minimum=0, maximum=0.5)
    cutout: float | None = _strength("side of a grey square, as a share of the image's side", minimum=0, below=1)

    def strengths(self) -> dict[str, float]:
        """The strength of each change by field name: as given, else as in the set of --augment."""
        given = dataclasses.asdict(self)
        chosen = {**dict.fromkeys(given, 0.0), **SETS["none"], **SETS.get(given.pop("augment"), {})}
        return {name: chosen[name] if value is None else value for name, value in given.items()}
