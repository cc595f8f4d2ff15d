"""Flags of augmentation: a set of changes, and single ones that differ from it."""

import dataclasses
from typing import Any

from petseg.config.options import Group, option


def _part(help: str, **allowed: Any) -> Any:
    return option(None, f"{help}; empty: as --augment says", kind=float, **allowed)


@dataclasses.dataclass(frozen=True)
class AugmentationConfig(Group):
    """Random changes to training examples."""

    augment: str = option(
        "flip",
        "`flip`; `standard`: also crops, small turns and colours; `strong`: more of it, and cutout",
        choices=("none", "flip", "standard", "strong"),
    )
    flip: float | None = _part("share of examples that are mirrored", minimum=0, maximum=1)
    crop_area: float | None = _part(
        "smallest area of a crop, as a share of the image's, to which its sides are cut", above=0, maximum=1
    )
    crop_aspect: float | None = _part("largest factor by which a crop is wider or narrower than the image", minimum=1)
    rotation: float | None = _part("largest angle, either way", unit="degrees", minimum=0, maximum=180)
    brightness: float | None = _part("largest change, as a share", minimum=0, maximum=1)
    contrast: float | None = _part("largest change, as a share", minimum=0, maximum=1)
    saturation: float | None = _part("largest change, as a share", minimum=0, maximum=1)
    hue: float | None = _part("largest rotation of colours, either way", unit="turns", minimum=0, maximum=0.5)
    cutout: float | None = _part("side of a square painted grey, as a share of the image's side", minimum=0, below=1)

    def changed_parts(self) -> dict[str, float]:
        """What was given, and so is not as the set says, by name."""
        parts = dataclasses.asdict(self)
        del parts["augment"]
        return {name: value for name, value in parts.items() if value is not None}
