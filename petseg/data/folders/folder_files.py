"""Reads the classes and all pairs of a folder, in parallel; pages of stacks as pairs. Imports no TensorFlow."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

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
from petseg.runtime.cpus import usable_cpus
from petseg.runtime.progress_bars import progress_bar

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 8  # threads that decode pairs, at most
logger = logging.getLogger(__name__)


def read_classes(config: DataConfig) -> Classes | None:
    """Reads the classes of --classes or of the folder's classes.json; None if there is neither.

    Raises:
      ConfigError: if the file is invalid.
    """
    if config.classes:
        return Classes.read(config.classes_file)
    file = Path(config.data_dir).expanduser() / CLASSES_FILE
    return Classes.read(file) if os.path.lexists(file) else None  # a broken link is an error


def infer_classes(layout: Layout) -> tuple[Classes | None, list[Fault]]:
    """Infers classes from the values in the masks; None if a needed split has faults. Also returns all faults.

    Masks of unneeded splits with faults are not counted.
    """
    pairs = _pairs_by_split(layout)
    found: dict[str, list[tuple[str, MaskFacts]]] = {}
    bad: list[Fault] = []
    read = map_with_progress(
        pairs, lambda each: _read_facts(each[1]), len(pairs), f"looking for classes in {layout.name}"
    )
    for (split, pair), facts in zip(pairs, read, strict=True):
        if isinstance(facts, Fault):
            bad.append(dataclasses.replace(facts, split=split))
        else:
            found.setdefault(split, []).append((pair.mask_name, facts))
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


def _read_facts(pair: Pair) -> MaskFacts | Fault:
    """Reads a mask whose classes are unknown."""
    data = pair_files.read_file(pair.mask_name, pair.mask)
    mask = data if isinstance(data, Fault) else pair_files.read_mask(pair.mask_name, data, None, pair.page)
    return mask if isinstance(mask, Fault) else MaskFacts.of(mask[1])


def read_pair(pair: Pair, coding: MaskCoding) -> DecodedPair:
    """Reads and decodes a pair."""
    read = [pair_files.read_file(name, path) for name, path in pair.files.items()]
    if faults := tuple(each for each in read if isinstance(each, Fault)):
        return DecodedPair(pair.name, pair.mask_name, faults=faults)
    image, mask, *weight = (each for each in read if not isinstance(each, Fault))
    with_weight = (pair.weight_name, weight[0]) if weight else None
    return pair_files.decode_pair(pair.name, image, pair.mask_name, mask, coding, pair.page, with_weight)


def read_pairs(layout: Layout, coding: MaskCoding) -> Iterator[tuple[str, DecodedPair]]:
    """Yields the split and content of every pair, split by split, with a progress bar."""
    pairs = _pairs_by_split(layout)

    def read(each: tuple[str, Pair]) -> tuple[str, DecodedPair]:
        split, pair = each[0], read_pair(each[1], coding)
        return split, dataclasses.replace(
            pair, faults=tuple(dataclasses.replace(fault, split=split) for fault in pair.faults)
        )

    return map_with_progress(pairs, read, len(pairs), f"reading {layout.name}")


def map_with_progress(items: Iterable[T], function: Callable[[T], R], count: int, what: str) -> Iterator[R]:
    """Applies a function to `count` items in threads, yields the results in order, and shows a progress bar."""
    threads = min(usable_cpus(), AT_ONCE)
    with progress_bar(None, logger, what=what, unit="pairs", total=count) as bar:
        for result in pair_files.map_in_order(function, items, threads):
            bar.update()
            yield result


def _pairs_by_split(layout: Layout) -> list[tuple[str, Pair]]:
    return [(split, pair) for split, members in layout.splits.items() for pair in members]


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
    names = ("name", "mask_name", "weight_name")
    return [
        dataclasses.replace(
            pair, page=page, **{key: f"{name}#{page + 1}" for key, name in zip(names, pair.files, strict=False)}
        )
        for page in range(min(of_image, *others))
    ]


def all_pairs(layout: Layout) -> Iterator[Pair]:
    return (pair for members in layout.splits.values() for pair in members)
