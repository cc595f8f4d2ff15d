"""Writes drawn cats and dogs as folders of images and masks, an example of your own data set.

`images/<split>/` and `masks/<split>/` with `classes.json`: background, cat and dog as an index with a palette. The same
masks in other codings: folders `masks_...`, each with its own classes file.
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
from petseg.errors import ConfigError
from petseg.runtime.progress_bars import progress_bar

COLORS = ((0, 114, 178), (213, 94, 0), (0, 158, 115))
NAMES = ("background", "cat", "dog")
INDEX = Classes(tuple(SegmentationClass(NAMES[i], i, COLORS[i], foreground=float(i > 0)) for i in range(len(NAMES))))
RGB = Classes(tuple(dataclasses.replace(each, value=each.color) for each in INDEX.members), ignored=())
ANIMAL = SegmentationClass("animal", 255, COLORS[1], foreground=1.0)
# Name of the classes file, and classes, by the name of the folder of masks.
CODINGS = {
    "masks": ("classes.json", INDEX),
    "masks_rgb": ("classes_rgb.json", RGB),
    "masks_0_255": ("classes_0_255.json", Classes((INDEX.members[0], ANIMAL), ignored=())),
    "masks_trimap": ("classes_trimap.json", PETS),
}
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class WriteConfig(Group):
    """What to draw, and where."""

    write: str = option("", "folder to write to, which must not exist or be empty", required=True)
    num_train: int = option(200, "training images", unit="images", minimum=1)
    num_test: int = option(50, "test images", unit="images", minimum=1)
    seed: int = option(0, "determines every image", minimum=0)
    debug: bool = option(False, "show the traceback of an error that is otherwise one line")


def write(config: WriteConfig) -> None:
    """Writes the folders. Raises ConfigError if the folder exists and is not empty, or cannot be written."""
    root = Path(config.write).expanduser()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"--write={config.write}: must be a folder that does not exist, or is empty")
    with files.explain_write_errors(root, flag=f"--write={config.write}", error_class=ConfigError):
        for number, (split, count) in enumerate({"train": config.num_train, "test": config.num_test}.items()):
            for folder in ("images", *CODINGS):
                (root / folder / split).mkdir(parents=True)
            for i in progress_bar(range(count), logger, what=f"drawing {split}", unit="images"):
                drawing = animal_drawing.draw(np.random.default_rng([config.seed, number, i]))
                name = f"{split}/{i:04d}_{NAMES[drawing.species + 1]}"
                Image.fromarray(drawing.image).save(root / "images" / f"{name}.jpg", quality=92)
                for folder, mask in _masks(drawing).items():
                    mask.save(root / folder / f"{name}.png")
        for file, classes in CODINGS.values():
            files.write_json(root / file, classes.to_dict())
    where = "--dataset=folder --data_dir=" + config.write
    print(
        f"{config.num_train + config.num_test} images, with masks in {len(CODINGS)} codings, are in {root}. Next:\n"
        f"  python -m petseg.data.check {where}\n"
        f"  {command_line.invocation('train.py')} {where} --train_split=train --eval_split=test"
    )


def _masks(drawing: animal_drawing.Drawing) -> dict[str, Image.Image]:
    """The mask of a drawing in every coding."""
    ids = drawing.silhouette.astype(np.uint8) * np.uint8(drawing.species + 1)
    colors = np.array(COLORS, np.uint8)
    index = Image.fromarray(ids)
    index.putpalette(colors.tobytes())
    others = (colors[ids], np.where(drawing.silhouette, np.uint8(255), np.uint8(0)), drawing.trimap)
    return dict(zip(CODINGS, (index, *map(Image.fromarray, others)), strict=True))


if __name__ == "__main__":
    command_line.run(write, WriteConfig, __doc__)
