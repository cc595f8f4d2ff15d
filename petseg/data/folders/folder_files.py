"""Reads the classes and all pairs of a folder, in parallel; pages of stacks as pairs. Imports no TensorFlow."""

import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from petseg.classes import Classes
from petseg.config import DataConfig
from petseg.data import picture_files
from petseg.data.folders import faults, pair_files
from petseg.data.folders.faults import Fault, Kind
from petseg.data.folders.folder_layout import Layout, Pair
from petseg.data.folders.inferred_classes import CLASSES_FILE, classes_from_masks
from petseg.data.folders.mask_values import MaskCoding
from petseg.data.folders.pair_files import DecodedPair
from petseg.data.mask_survey import MaskFacts
from petseg.data.picture import PictureError
from petseg.data.picture_files import FileContent
from petseg.runtime.cpus import usable_cpus
from petseg.runtime.progress_bars import progress_bar

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 8  # threads that decode pairs, at most
logger = logging.getLogger(__name__)


def read_classes(config: DataConfig) -> Classes | None:
    """Reads the classes of --classes or of the folder's classes.json; None if there is neither.

    Raises ConfigError if the file is invalid.
    """
    if config.classes:
        return Classes.read(config.classes_file)
    file = Path(config.data_dir).expanduser() / CLASSES_FILE
    return Classes.read(file) if os.path.lexists(file) else None  # a broken link is an error


def infer_classes(layout: Layout) -> tuple[Classes | None, list[Fault]]:
    """Infers classes from the values in the masks; None if a needed split has faults. Also returns all faults.

    Masks of unneeded splits with faults are not counted.
    """
    found: dict[str, list[tuple[str, MaskFacts]]] = {}
    bad: list[Fault] = []

    def read(each: _Task) -> tuple[_Task, MaskFacts | Fault]:
        values = pair_files.read_values(each.pair.mask_name, each.mask, None, each.pair.page)
        return each, values if isinstance(values, Fault) else MaskFacts.of(values)

    for task, facts in _map_pairs(layout, read, f"looking for classes in {layout.name}"):
        if isinstance(facts, Fault):
            bad.append(dataclasses.replace(facts, split=task.split))
        else:
            found.setdefault(task.split, []).append((task.pair.mask_name, facts))
    blocking, others = faults.partition(bad, layout.needed)
    usable = [each for split, of_split in found.items() if split not in others for each in of_split]
    needed = [each for split, of_split in found.items() if split in layout.needed for each in of_split]
    if blocking or not usable:
        return None, bad
    classes, wrong = classes_from_masks(usable)
    if needed and len(needed) < len(usable):
        of_needed = classes_from_masks(needed)
        if wrong or (of_needed[0] and classes and of_needed[0].colored != classes.colored):
            classes, wrong = of_needed
    return classes, [*bad, *wrong]


class _Task(NamedTuple):
    """A pair to be read: its split, and its files, which the pages of a stack share."""

    split: str
    pair: Pair
    image: FileContent
    mask: FileContent
    weight: FileContent | None


def read_pairs(layout: Layout, coding: MaskCoding) -> Iterator[tuple[str, DecodedPair]]:
    """Yields the split and content of every pair, split by split, with a progress bar."""

    def read(each: _Task) -> tuple[str, DecodedPair]:
        weight = None if each.weight is None else (each.pair.weight_name, each.weight)
        pair = pair_files.decode_pair(
            each.pair.name, each.image, each.pair.mask_name, each.mask, coding, each.pair.page, weight
        )
        faults = tuple(dataclasses.replace(fault, split=each.split) for fault in pair.faults)
        return each.split, dataclasses.replace(pair, faults=faults)

    return _map_pairs(layout, read, f"reading {layout.name}")


def _map_pairs(layout: Layout, function: Callable[[_Task], R], what: str) -> Iterator[R]:
    """Applies a function to each pair as `map_with_progress` does."""

    def tasks() -> Iterator[_Task]:
        for split, members in layout.splits.items():
            of_files = itertools.groupby(members, lambda pair: (pair.image, pair.mask, pair.weight))
            for (image, mask, weight), pairs in of_files:
                files = FileContent(image), FileContent(mask), FileContent(weight) if weight else None
                yield from (_Task(split, pair, *files) for pair in pairs)

    return map_with_progress(tasks(), function, sum(map(len, layout.splits.values())), what)


def map_with_progress(items: Iterable[T], function: Callable[[T], R], count: int, what: str) -> Iterator[R]:
    """Applies a function to `count` items in threads, yields the results in order, and shows a progress bar."""
    threads = min(usable_cpus(), AT_ONCE)
    with progress_bar(None, logger, what=what, unit="pairs", total=count) as bar:
        for result in pair_files.map_in_order(function, items, threads):
            bar.update()
            yield result


def pages_as_pairs(layout: Layout, config: DataConfig) -> Layout:
    """With --pages=examples, the layout with a pair for each page of each file; else the layout as it is.

    Pairs whose image and mask differ in their number of pages are faults.
    """
    if config.pages == "refuse":
        return layout
    found: list[Fault] = []
    splits = {
        split: tuple(page for pair in members for page in _pages(pair, split, found))
        for split, members in layout.splits.items()
    }
    blocking, others = faults.partition(found, layout.needed)
    left_out = {**layout.left_out, **{split: faults.left_out_note(split, bad) for split, bad in others.items()}}
    return dataclasses.replace(layout, splits=splits, faults=(*layout.faults, *blocking), left_out=left_out)


def _pages(pair: Pair, split: str, found: list[Fault]) -> list[Pair]:
    """The pages of a pair, each a pair of its own; a file that cannot be read is reported when it is decoded."""
    try:
        of_image, *others = (picture_files.count_pages(file) for file in pair.files.values())
    except PictureError:
        return [pair]
    for what, name, count in zip(("mask", "weight map"), [*pair.files][1:], others, strict=False):
        if count != of_image:
            text = f"holds {of_image} pages, its {what} {name} {count}; must be as many"
            found.append(Fault(Kind.PAGES, pair.name, text, split))
    if of_image == 1:
        return [pair]
    return [
        dataclasses.replace(
            pair,
            name=f"{pair.name}#{page + 1}",
            mask_name=f"{pair.mask_name}#{page + 1}",
            weight_name=pair.weight_name and f"{pair.weight_name}#{page + 1}",
            page=page,
        )
        for page in range(min(of_image, *others))
    ]


def all_pairs(layout: Layout) -> Iterator[Pair]:
    return (pair for members in layout.splits.values() for pair in members)
