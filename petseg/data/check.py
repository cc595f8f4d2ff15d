"""Checks a data set before training: python -m petseg.data.check --dataset=folder --data_dir=PATH.

Reads every pair of every split once, prints statistics, possible mistakes and faults, and writes a sheet of images with
mask overlays. Exit code 2 if there are faults.
"""

import dataclasses
import io
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from petseg import files
from petseg.classes import Classes
from petseg.config import DataConfig, command_line
from petseg.config.data_config import FOLDER, named_splits
from petseg.config.options import Group, option
from petseg.data.folders import faults, folder_files, folder_layout, mask_values
from petseg.data.folders.faults import Fault
from petseg.data.folders.inspection import Inspection
from petseg.data.folders.mask_values import MaskCoding
from petseg.data.folders.pair_files import DecodedPair
from petseg.data.images import Bands, joined
from petseg.data.overlays import OverlaySheet
from petseg.errors import ConfigError, DataError
from petseg.runtime import startup

SHOWN_FAULTS = 20
logger = logging.getLogger("petseg.data.check")  # __name__ is __main__


@dataclasses.dataclass(frozen=True)
class CheckOptions(Group):
    """Output of the check."""

    output_dir: str = option(".", "folder for the sheet of mask overlays, `NAME-overlays.jpg`")
    overlays: int = option(12, "number of images on the sheet; 0: no sheet", unit="pictures", minimum=0, maximum=120)
    against: str = option(
        "",
        "trained run (a work directory, packed weights, or `pets`): also list likely label errors, the masks of "
        "--train_split that it contradicts most, and draw them as `NAME-disputed.jpg`",
    )
    disputed: int = option(24, "number of masks that --against lists", unit="pictures", minimum=1, maximum=120)
    allow_code: bool = option(False, "run the code that the flags of --against name; only if you trust it")
    debug: bool = option(False, "show the traceback of an error that is otherwise one line")


@dataclasses.dataclass(frozen=True)
class CheckConfig:
    """All flags of the check. All splits of the data are checked, not only those of the flags."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    check: CheckOptions = dataclasses.field(default_factory=CheckOptions)


@dataclasses.dataclass(frozen=True)
class _Source:
    """A data set to check."""

    name: str  # its name, for the sheet
    sizes: Mapping[str, int]  # number of pairs by split
    pairs: Iterator[tuple[str, DecodedPair]]  # iterator over splits and pairs
    classes: Classes | None  # its classes; None if they cannot be inferred, then `pairs` is empty
    needed: Collection[str]  # the splits that must have no faults
    origin: str = ""  # description of what decided splits and classes
    faults: Sequence[Fault] = ()  # faults found before reading pairs
    notes: Sequence[str] = ()  # possible mistakes found before reading pairs


def main(config: CheckConfig) -> None:
    """Checks a data set.

    Raises ConfigError if a flag is invalid, or the sheet cannot be written, and DataError if the data set has faults,
    which were printed.
    """
    source = _folder(config.data) if config.data.dataset == FOLDER else _tfds(config)
    sizes = ", ".join(f"{split} {size}" for split, size in source.sizes.items())
    print(f"{source.name}: {sum(source.sizes.values())} pairs; {sizes}")
    for line in source.origin.splitlines():
        print(line)
    found, notes = list(source.faults), list(source.notes)
    overlays: OverlaySheet | None = None
    if source.classes is not None:
        inspection = Inspection(source.classes, source.needed, source.faults, config.data)
        overlays = OverlaySheet(source.classes, sum(source.sizes.values()), config.check.overlays)
        for split, pair in source.pairs:
            inspection.add(split, pair)
            overlays.add(split, pair)
        inspection.finish()
        _print_counts(inspection, config.data)
        found, notes = inspection.faults, [*notes, *inspection.notes()]
    if overlays:
        print(f"overlays: {_sheet_file(source.name, config.check)}")
    blocking, others = faults.partition(found, source.needed)
    notes += [faults.left_out_note(split, of_it) for split, of_it in others.items()]
    for note in notes:
        print(f"note: {note}")
    _print_faults(blocking)
    if overlays:  # last, since it may fail
        _write_sheet(overlays, _sheet_file(source.name, config.check), config.check)
    if blocking:
        count = len(blocking)
        raise DataError(f"{count} fault{'s' if count > 1 else ''}, printed above; fix them before training")
    if config.check.against:
        _print_disputes(source.name, config)


def _print_disputes(name: str, config: CheckConfig) -> None:
    """Prints likely label errors: the masks that a trained run contradicts."""
    startup.load_tensorflow(show_greetings=config.check.debug)
    from petseg.runs import label_errors

    options = config.check
    file = _sheet_file(name, options, "disputed")
    for line in label_errors.report(
        options.against, config.data, most=options.disputed, sheet=file, allow_code=options.allow_code
    ):
        print(line)


def _folder(config: DataConfig) -> _Source:
    layout = folder_files.pages_as_pairs(folder_layout.scan_folder(config), config)
    classes, found = folder_files.read_classes(config), list(layout.faults)
    where = config.classes or folder_files.CLASSES_FILE
    if classes is None:
        classes, bad = folder_files.infer_classes(layout)
        found += bad if classes is None else []  # otherwise `read_pairs` finds them again
        where = "the masks themselves"
    pairs = folder_files.read_pairs(layout, MaskCoding(classes)) if classes else iter(())
    sizes = {split: len(members) for split, members in layout.splits.items()}
    origin = f"splits: {layout.origin}" + (f"\nclasses: {len(classes)} of {where}" if classes else "")
    notes = [*_missing_splits(config, {**sizes, **layout.left_out}), *layout.notes, *layout.left_out.values()]
    return _Source(layout.name, sizes, pairs, classes, layout.needed, origin, found, notes)


def _tfds(config: CheckConfig) -> _Source:
    startup.load_tensorflow(show_greetings=config.check.debug)
    from petseg.data import tfds_pairs

    name, sizes, classes, pairs = tfds_pairs.read_all(config.data)
    needed = faults.needed_splits(config.data, sizes)
    return _Source(name, sizes, pairs, classes, needed, notes=_missing_splits(config.data, sizes))


def _missing_splits(config: DataConfig, there: Collection[str]) -> list[str]:
    """Notes on flags that name missing splits."""
    flags = (("train_split", config.train_split), ("eval_split", config.eval_split))
    return [
        f"--{flag}={split}: there is no such split; to train, it must be one of {', '.join(there)}"
        for flag, split in flags
        if not named_splits(split) <= {"all", *there}
    ]


def _print_counts(inspection: Inspection, config: DataConfig) -> None:
    """Prints the statistics."""
    if not inspection.sizes:
        return
    for i, what in enumerate(("images", "masks")):
        modes: dict[str, int] = {}
        for stored, count in inspection.modes.items():
            modes[stored[i] or "not readable"] = modes.get(stored[i] or "not readable", 0) + count
        print(f"modes of {what}: " + ", ".join(f"{mode} {count}" for mode, count in sorted(modes.items())))
    found = joined(inspection.bands, config.named_splits).rows()
    kinds = {Bands(*row[:3]): row[3] for row in found}
    if any(bands.channels != 3 or bands.alpha or bands.dtype != "uint8" for bands in kinds):
        print("bands of images: " + ", ".join(f"{bands} {count}" for bands, count in kinds.items()))
    for line in inspection.weights.lines(config.weight_scale):
        print(line)
    if inspection.groups:
        sizes = [group.total() for group in inspection.groups.values()]
        print(f"groups: {len(sizes)}, of {min(sizes)} to {max(sizes)} images")
    print(f"sizes (height x width): {_sizes(inspection)}")
    _print_classes(inspection)
    print(f"suggested: {inspection.suggested_size()}")
    split = config.train_split if config.train_split in inspection.splits else next(iter(inspection.splits))
    if weights := inspection.suggested_weights(split):
        print(f"suggested, to give rare classes the same weight: {weights}")


def _sizes(inspection: Inspection) -> str:
    smallest, largest = inspection.extreme_sizes()
    if smallest == largest:
        return f"all {smallest[0]} x {smallest[1]}"
    shown = zip(("median", "smallest", "largest"), (inspection.median_size, smallest, largest), strict=True)
    return ", ".join(f"{name} {height} x {width}" for name, (height, width) in shown)


def _print_classes(inspection: Inspection) -> None:
    """Prints a table: fraction of labelled pixels, and number of images, by class and split."""
    classes, splits = inspection.classes, inspection.splits
    names = [*classes.names, "in no class"]
    values = [mask_values.class_value_text(each) for each in classes.members] + [""]
    wide = max(len(name) for name in names), max(len("value"), *map(len, values))
    columns = "".join(f"  {split + ': pixels':>16} {'images':>8}" for split in splits)
    print(f"{'class':<{wide[0]}}  {'value':>{wide[1]}}{columns}")
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        cells = ""
        for counts in splits.values():
            place = i if i < len(classes) else 255
            total = counts.pixels.sum() if place == 255 else counts.pixels[: len(classes)].sum()
            cells += f"  {counts.pixels[place] / max(total, 1):>16.2%} {counts.pictures[place]:>8}"
        print(f"{name:<{wide[0]}}  {value:>{wide[1]}}{cells}")


def _sheet_file(name: str, options: CheckOptions, contents: str = "overlays") -> Path:
    title = re.sub(r"[^\w.]+", "-", name)  # a TFDS name may have a config and a version
    return Path(options.output_dir or ".").expanduser() / f"{title}-{contents}.jpg"


def _write_sheet(overlays: OverlaySheet, file: Path, options: CheckOptions) -> None:
    flag = f"--output_dir={options.output_dir}"
    with files.explain_write_errors(file, flag=flag, error_class=ConfigError):
        sheet = io.BytesIO()
        overlays.sheet().save(sheet, "JPEG", quality=88)
        files.write_bytes(file, sheet.getvalue())


def _print_faults(found: Sequence[Fault]) -> None:
    """Prints the number of faults by kind, then the first faults."""
    if not found:
        print("nothing is wrong")
        return
    for kind in dict.fromkeys(fault.kind for fault in found):
        print(f"faults: {sum(fault.kind == kind for fault in found)} {kind.value}")
    for fault in found[:SHOWN_FAULTS]:
        print(f"  {fault}")
    if len(found) > SHOWN_FAULTS:
        print(f"  and {len(found) - SHOWN_FAULTS} more")


if __name__ == "__main__":
    command_line.run(main, CheckConfig, __doc__)
