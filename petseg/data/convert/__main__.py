"""Converts annotations in other formats than masks to a data set for --dataset=folder.

    python -m petseg.data.convert --from=coco|labelme|yolo|masks_per_class SOURCE --to=FOLDER

Writes images/, masks/ (class ids, background 0, 255 in no class) and classes.json; by split, where the source has
splits. Where objects overlap, the smaller one is on top. Images are copied as they are.
"""

import contextlib
import dataclasses
import errno
import importlib.util
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from petseg import files
from petseg.classes import Classes
from petseg.config import DataConfig, command_line
from petseg.config.options import Group, option
from petseg.data.convert import coco, conversion, detection, labelme, masks_per_class, yolo
from petseg.data.convert.annotations import Annotations
from petseg.data.convert.conversion import Counts
from petseg.data.convert.picture_search import PictureIndex
from petseg.data.folders import folder_layout
from petseg.errors import ConfigError

FORMATS = ("coco", "labelme", "yolo", "masks_per_class")
# Packages by the names under which they are imported; all are of the extra `convert`.
NEEDED = {"coco": ("pycocotools",), "labelme": ("pycocotools",), "yolo": ("pycocotools", "yaml"), "masks_per_class": ()}
UNFINISHED = ".unfinished"


@dataclasses.dataclass(frozen=True)
class ConversionConfig(Group):
    """Flags: the source, its format, and the folder to write."""

    positional: ClassVar[str] = "source"

    from_: str = option("", f"format of the annotations: `{'`, `'.join(FORMATS)}`")
    source: str = option(
        "", "folder of the annotations, or their JSON or YAML file; needs no flag's name", required=True
    )
    to: str = option("", "folder to write, which must not exist or be empty", required=True)
    image_dir: str = option("", "folder of the pictures; empty: they are found by their names in SOURCE")
    mask_dir: str = option("", "folder of the masks of --from=masks_per_class; empty: `masks` in SOURCE")
    link: bool = option(False, "make hard links to the pictures instead of copies: no disk space, one file system")
    debug: bool = option(False, "show the traceback of an error that is otherwise one line")


def main(config: ConversionConfig) -> None:
    """Converts annotations.

    Raises ConfigError if a flag is invalid, a package is missing, or the folder cannot be written, and DataError if the
    annotations are invalid.
    """
    source, target = Path(config.source).expanduser(), Path(config.to).expanduser()
    _check(config, source, target)
    annotations = _read(config, source)
    with _written(target, config) as unfinished:
        classes, counts = conversion.write(annotations, config.source, unfinished, link=config.link)
    _report(config, annotations, classes, counts)


def _check(config: ConversionConfig, source: Path, target: Path) -> None:
    """Raises ConfigError if flags are invalid."""
    if not source.exists():
        raise ConfigError(f"{config.source}: does not exist; must be the folder or file of the annotations")
    if config.from_ not in FORMATS:
        looks = detection.detected_format(source if source.is_dir() else source.parent)
        hint = f"; {config.source} looks like {looks}" if looks else ""
        raise ConfigError(f"--from={config.from_}: must be one of {', '.join(FORMATS)}{hint}")
    for flag, value in (("image_dir", config.image_dir), ("mask_dir", config.mask_dir)):
        if value and not Path(value).expanduser().is_dir():
            raise ConfigError(f"--{flag}={value}: must be a folder")
    if config.mask_dir and config.from_ != "masks_per_class":
        raise ConfigError(f"--mask_dir={config.mask_dir}: must be empty without --from=masks_per_class")
    if target.exists() and (not target.is_dir() or any(each.name != UNFINISHED for each in target.iterdir())):
        raise ConfigError(f"--to={config.to}: must be a folder that does not exist, or is empty")
    for package in NEEDED[config.from_]:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"--from={config.from_}: needs the package {package}: pip install 'petseg[convert]'")


def _read(config: ConversionConfig, source: Path) -> Annotations:
    image_dir = Path(config.image_dir).expanduser() if config.image_dir else None
    root = image_dir or (source if source.is_dir() else source.parent)
    pictures = PictureIndex(root)
    if config.from_ == "masks_per_class":
        mask_dir = Path(config.mask_dir).expanduser() if config.mask_dir else None
        return masks_per_class.read(source, pictures, image_dir, mask_dir)
    read = {"coco": coco.read, "labelme": labelme.read, "yolo": yolo.read}[config.from_]
    return read(source, pictures, image_dir)


@contextlib.contextmanager
def _written(target: Path, config: ConversionConfig) -> Iterator[Path]:
    """A folder in the target whose content is moved there at the end, and removed after an error."""
    unfinished = target / UNFINISHED
    existed = target.exists()
    try:
        with files.explain_write_errors(target, flag=f"--to={config.to}", error_class=ConfigError):
            shutil.rmtree(unfinished, ignore_errors=True)  # of a conversion that was killed
            files.make_folder(unfinished)
            yield unfinished
            for path in sorted(unfinished.iterdir(), reverse=True):  # classes.json last
                files.move(path, target / path.name)
            unfinished.rmdir()
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise ConfigError("--link: SOURCE and --to must be on one file system, for hard links") from error
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not existed:
            with contextlib.suppress(OSError):  # it is not empty
                target.rmdir()


def _report(config: ConversionConfig, annotations: Annotations, classes: Classes, counts: Counts) -> None:
    """Prints what was written, what was left out, and the commands that come next."""
    for note in [*annotations.all_notes(), *counts.notes()]:
        print(f"note: {note}")
    splits = ", ".join(f"{split} {count}" for split, count in counts.images.items() if split)
    total = sum(counts.images.values())
    how = "linked" if config.link else "copied"
    print(f"{config.to}: {total} images, {how}; {counts.objects} objects; {splits or 'no splits in the source'}")
    print(f"classes: {', '.join(classes.names[:20])}{', ...' if len(classes) > 20 else ''}")
    data = ["--dataset=folder", f"--data_dir={config.to}", *_split_flags(config.to)]
    print(f"Next:\n  python -m petseg.data.check {shlex.join(data)}")
    print(f"  {command_line.invocation('train.py')} {shlex.join(data)}")


def _split_flags(folder: str) -> list[str]:
    """The flags of the splits that a converted folder has, where they are not the default ones."""
    splits = list(folder_layout.scan_folder(DataConfig(dataset="folder", data_dir=folder)).splits)
    train = next((split for split in ("train", "training", "trainval") if split in splits), splits[0])
    others = [split for split in ("test", "val", "valid", "validation", "dev") if split in splits and split != train]
    flags = {"train_split": train, "eval_split": others[0] if others else f"{train}[90%:]"}
    if not others:
        flags["train_split"] = f"{train}[:90%]"
    return [f"--{name}={value}" for name, value in flags.items() if value != getattr(DataConfig, name)]


if __name__ == "__main__":
    command_line.run(main, ConversionConfig, __doc__)
