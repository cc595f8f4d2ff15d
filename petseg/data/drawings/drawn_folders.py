"""Writes drawn cats and dogs as folders of pictures and masks, the way people have their own data.

`images/<split>/` and `masks/<split>/` with `classes.json`, background, cat and dog as an index with a palette; and the
same masks in other codings, each in a folder `masks_...` with its own classes file.
"""

import dataclasses
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from petseg import files
from petseg.classes import PETS, Classes, SegmentationClass
from petseg.config import command_line
from petseg.config.options import Group, option
from petseg.data.drawings import animal_drawing
from petseg.data.drawings.animal_drawing import SPECIES
from petseg.errors import ConfigError
from petseg.runtime.progress_bars import progress_bar

SPLITS = ("train", "test")
COLORS = ((0, 114, 178), (213, 94, 0), (0, 158, 115))
NAMES = ("background", *(name.lower() for name in SPECIES))
INDEX = Classes(
    tuple(
        SegmentationClass(name, i, color, foreground=float(i > 0))
        for i, (name, color) in enumerate(zip(NAMES, COLORS, strict=True))
    )
)
RGB = Classes(tuple(dataclasses.replace(each, value=each.color) for each in INDEX.members), ignored=())
ZERO_AND_255 = Classes(
    (SegmentationClass("background", 0, COLORS[0]), SegmentationClass("animal", 255, COLORS[1], foreground=1.0)),
    ignored=(),
)
# Classes by the name of the masks' folder, and of the classes file.
CODINGS = {
    "masks": ("classes.json", INDEX),
    "masks_rgb": ("classes_rgb.json", RGB),
    "masks_0_255": ("classes_0_255.json", ZERO_AND_255),
    "masks_trimap": ("classes_trimap.json", PETS),
}
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class WriteConfig(Group):
    """What is drawn, and where."""

    write: str = option("", "folder to write to, which must not exist or be empty", required=True)
    num_train: int = option(200, "training pictures", unit="pictures", minimum=1)
    num_test: int = option(50, "test pictures", unit="pictures", minimum=1)
    seed: int = option(0, "decides every picture", minimum=0)
    debug: bool = option(False, "show the traceback of an error that is otherwise one line")


def write(config: WriteConfig) -> None:
    """Writes the folders.

    Raises:
      ConfigError: if something is there already, or the folder cannot be written.
    """
    root = Path(config.write).expanduser()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"--write={config.write}: must be a folder that does not exist, or is empty")
    with files.naming_what_cannot_be_written(root, flag=f"--write={config.write}", error_class=ConfigError):
        for file, classes in CODINGS.values():
            files.write_json(root / file, classes.to_dict())
        for number, (split, count) in enumerate(zip(SPLITS, (config.num_train, config.num_test), strict=True)):
            for folder in ("images", *CODINGS):
                (root / folder / split).mkdir(parents=True)
            for i in progress_bar(range(count), logger, what=f"drawing {split}", unit="pictures"):
                drawing = animal_drawing.draw(np.random.default_rng([config.seed, number, i]))
                _write_pair(root, split, f"{i:04d}_{NAMES[drawing.species + 1]}", drawing)
    where = "--dataset=folder --data_dir=" + config.write
    print(
        f"{config.num_train + config.num_test} pictures, with masks in {len(CODINGS)} codings, are in {root}. Next:\n"
        f"  python -m petseg.data.check {where}\n"
        f"  {command_line.invocation('train.py')} {where} --train_split=train --eval_split=test"
    )


def _write_pair(root: Path, split: str, name: str, drawing: animal_drawing.Drawing) -> None:
    """Writes a picture, and its mask in every coding."""
    Image.fromarray(drawing.image).save(root / "images" / split / f"{name}.jpg", quality=92)
    ids = np.where(drawing.silhouette, drawing.species + 1, 0).astype(np.uint8)
    index = Image.fromarray(ids)
    index.putpalette(np.array(COLORS, np.uint8).tobytes())
    masks = {
        "masks": index,
        "masks_rgb": Image.fromarray(np.array(COLORS, np.uint8)[ids]),
        "masks_0_255": Image.fromarray(drawing.silhouette.astype(np.uint8) * 255),
        "masks_trimap": Image.fromarray(drawing.trimap),
    }
    for folder, mask in masks.items():
        mask.save(root / folder / split / f"{name}.png")
