"""Pairs images with masks and assigns them to splits, by file names alone; opens no image.

Without patterns: `images/<split>/` and `masks/<split>/`; or `images/` and `masks/` with a list `<split>.txt` of names
for each split; or, without lists, 80/10/10 by a hash of the name.
"""

import dataclasses
import errno
import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from petseg.config import DataConfig
from petseg.config.data_config import named_splits
from petseg.data.convert.detection import conversion_hint, masks_per_class_hint
from petseg.data.folders import faults, folder_splits, split_lists
from petseg.data.folders.faults import Fault, Kind
from petseg.data.folders.file_patterns import SUFFIXES, Pattern, PictureFile, composed
from petseg.data.folders.folder_splits import Splits
from petseg.data.folders.split_lists import USUAL_SPLITS
from petseg.errors import ConfigError, DataError
from petseg.files import printable


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    name: str  # printable path of the image relative to the folder, with `#3` for the third page of a file
    image: Path  # its file
    mask_name: str  # printable path of the mask
    mask: Path  # its file
    page: int | None = None  # page of all files, from 0 on; None for files of one page
    weight_name: str = ""  # printable path of the weight map; empty without
    weight: Path | None = None  # the weight map; None without

    @property
    def files(self) -> dict[str, Path]:
        """Image, mask and weight map, as far as there are any, by their printable names."""
        found = {self.name: self.image, self.mask_name: self.mask}
        return found if self.weight is None else {**found, self.weight_name: self.weight}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The pairs of a folder."""

    root: Path  # the folder
    splits: Mapping[str, tuple[Pair, ...]]  # pairs by split, sorted by name; no split is empty
    origin: str  # description of what decided the splits
    needed: frozenset[str]  # the splits that must have no faults
    faults: tuple[Fault, ...] = ()  # faults of these splits, or of the folder as a whole
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)  # unneeded splits with faults, and the reason
    notes: tuple[str, ...] = ()  # possible mistakes

    @property
    def name(self) -> str:
        """The printable name of the folder."""
        return printable(self.root.resolve().name)

    @property
    def has_weights(self) -> bool:
        """Whether any pair has a weight map."""
        return any(pair.weight for pairs in self.splits.values() for pair in pairs)


def check_splits(config: DataConfig) -> None:
    """Checks that a folder has the splits of --train_split and --eval_split.

    Raises:
      ConfigError: as `scan_folder`.
      DataError: if one is missing; names the flag and the existing splits.
    """
    layout = scan_folder(config)
    there = [*layout.splits, *layout.left_out]
    lacking = {fault.split: fault for fault in layout.faults}
    sizes = ", ".join(f"{split} ({len(pairs)} pairs)" for split, pairs in layout.splits.items()) or "none"
    for flag, value in (("train_split", config.train_split), ("eval_split", config.eval_split)):
        for name in sorted(named_splits(value)):
            if name in there or name in lacking or name == "all":
                continue
            raise DataError(
                f"--{flag}={value}: {config.data_dir} has no split {name}; must be one of {sizes}, or a slice such as "
                "'train[90%:]'"
            )


@dataclasses.dataclass(frozen=True)
class _Matches:
    """The files that match two patterns."""

    images: Pattern  # the pattern of images
    masks: Pattern  # the pattern of masks
    pictures: Mapping[str, PictureFile]  # the images by path, sorted
    partners: Mapping[str, Sequence[PictureFile]]  # the masks of each image, by its path
    spare: Sequence[PictureFile]  # masks without an image
    weights: Pattern | None = None  # the pattern of weight maps; None without
    # the weight maps of each image, by its path; empty without
    maps: Mapping[str, Sequence[PictureFile]] = dataclasses.field(default_factory=dict)


def scan_folder(config: DataConfig) -> Layout:
    """Finds the pairs and splits of a folder.

    Raises ConfigError if there is no such folder, or a pattern is invalid, and DataError if there are no images.
    """
    config.check_data_dir()
    root = Path(config.data_dir).expanduser()
    if not root.is_dir():
        raise ConfigError(f"--data_dir={config.data_dir}: must be a folder, with images and masks below it")
    images, masks, found = _patterns(config, root)
    matches = _matches(config, root, images, masks)
    splits = folder_splits.find_splits(root, images, matches.pictures.values(), config.named_splits)
    needed = frozenset(splits.paths) if splits.hashed else faults.needed_splits(config, splits.paths)
    pairs = {
        path: Pair(picture.shown, root / path, partner.shown, root / partner.path, None, *_weight(matches, path, root))
        for path, picture in matches.pictures.items()
        for partner in matches.partners[path]
        if len(matches.partners[path]) == 1
    }
    spare, notes = _spare(matches, splits, needed)
    found += [*splits.faults, *spare, *_without_mask(matches, splits, needed, root), *_ambiguous(matches, splits, root)]
    found += [*_without_weight(matches, splits, named_splits(config.train_split)), *_unreadable(pairs, splits)]
    found.sort(key=lambda fault: list(Kind).index(fault.kind))
    blocking, others = faults.partition(found, needed)
    left_out = {split: faults.left_out_note(split, of_it) for split, of_it in others.items()}
    whole = {
        split: tuple(pairs[path] for path in sorted(splits.paths[split]) if path in pairs)
        for split in sorted(splits.paths, key=lambda split: ([*USUAL_SPLITS, split].index(split), split))
        if split not in left_out
    }
    whole = {split: of_it for split, of_it in whole.items() if of_it}
    notes = [*splits.notes, *notes, *_other_masks(pairs, splits)]
    return Layout(root, whole, splits.origin, needed, tuple(blocking), left_out, tuple(notes))


def _patterns(config: DataConfig, root: Path) -> tuple[Pattern, Pattern, list[Fault]]:
    """The patterns of images and masks, and faults of files that are outside of the folders of splits."""
    if config.image_files:
        images, masks = Pattern(config.image_files, "--image_files"), Pattern(config.mask_files, "--mask_files")
        _check_placeholders(images, masks, "--mask_files")
        return images, masks, []
    for name, flag in (("images", "--image_files"), ("masks", "--mask_files")):
        if not (root / name).is_dir():
            what = f"{name} is {_link(root / name)}" if (root / name).is_symlink() else f"has no folder {name}"
            must = f"; must have images and masks, or {flag} say where they are"
            raise DataError(f"{config.data_dir}: {what}{conversion_hint(config.data_dir) or must}")
    flat, nested = Pattern("images/*"), Pattern("images/{split}/**/*")
    folders = {picture.split for picture in nested.files(root)}
    lost = _lost_folders(root)
    if not folders:
        if lost and not flat.files(root):
            raise faults.as_error(lost, config.data_dir, faults.check_command(config))
        return flat, Pattern("masks/{name}.*"), []
    usual = any(name.lower() in USUAL_SPLITS or name in config.named_splits for name in folders)
    if not usual and split_lists.has_split_lists(root, config.named_splits):
        return Pattern("images/**/*"), Pattern("masks/**/{name}.*"), []  # lists decide the splits, not folders
    what = "is beside the folders of the splits; must be in one"
    stray = [Fault(Kind.AMBIGUOUS, picture.shown, what) for picture in flat.files(root)]
    return nested, Pattern("masks/{split}/**/{name}.*"), [*stray, *lost]


def _check_placeholders(images: Pattern, others: Pattern, flag: str) -> None:
    for part in ("{split}", "**/"):
        if others.uses(part) and not images.uses(part):
            raise ConfigError(f"{flag}={others.text}: has {part}; --image_files={images.text} must have it too")


def _lost_folders(root: Path) -> list[Fault]:
    """Faults of broken links in the place of a split's folder."""
    links = [path for kind in ("images", "masks") for path in sorted((root / kind).iterdir()) if path.is_symlink()]
    lost = [link for link in links if not link.exists() and not link.name.lower().endswith(SUFFIXES)]
    must = "must lead to the folder of a split"
    return [
        Fault(Kind.UNREADABLE, printable(f"{link.parent.name}/{link.name}"), f"is {_link(link)}; {must}", link.name)
        for link in lost
    ]


def _matches(config: DataConfig, root: Path, images: Pattern, masks: Pattern) -> _Matches:
    """Finds images and their masks. Raises DataError if there are no images, or no masks."""
    weights = Pattern(config.weight_files, "--weight_files") if config.weight_files else None
    weight_files = weights.files(root) if weights else []
    if weights and not weight_files:
        raise DataError(
            f"{config.data_dir}: {weights.text} matches no weight map; --weight_files must say where they are"
        )
    if weights:
        _check_placeholders(images, weights, "--weight_files")
    of_weights = {file.path for file in weight_files}
    pictures = [picture for picture in images.files(root) if picture.path not in of_weights]
    candidates = masks.files(root)
    partners = _partners(images, masks, pictures, candidates)
    used = {mask.path for several in partners.values() for mask in several}
    # The pattern of images may match masks too, which are no images.
    by_path = {picture.path: picture for picture in pictures if picture.path not in used}
    if not by_path:
        must = f"; --image_files must say where they are; they must end in {', '.join(SUFFIXES[:7])}"
        hint = conversion_hint(config.data_dir) or must
        raise DataError(f"{config.data_dir}: {images.text} matches no image{hint}")
    if not candidates:
        what = f"{masks.text} matches no mask, and {images.text} {len(by_path)} images"
        hint = conversion_hint(config.data_dir) or "; --mask_files must say where their masks are"
        raise DataError(f"{config.data_dir}: {what}{hint}")
    spare = [mask for mask in candidates if mask.path not in {*used, *by_path, *of_weights}]
    maps = _partners(images, weights, by_path.values(), weight_files) if weights else {}
    return _Matches(images, masks, by_path, partners, spare, weights, maps)


def _partners(
    images: Pattern, masks: Pattern, pictures: Iterable[PictureFile], candidates: Iterable[PictureFile]
) -> dict[str, list[PictureFile]]:
    """The masks of each image, by its path."""

    def key(file: PictureFile) -> tuple[str, str, str]:
        both = [images.uses(part) and masks.uses(part) for part in ("{split}", "**/")]
        return file.split * both[0], composed(file.folder) * both[1], composed(file.name)

    by_key: dict[tuple[str, str, str], list[PictureFile]] = {}
    for mask in candidates:
        by_key.setdefault(key(mask), []).append(mask)
    return {
        picture.path: [mask for mask in by_key.get(key(picture), []) if mask.path != picture.path]
        for picture in pictures
    }


def _spare(matches: _Matches, splits: Splits, needed: Collection[str]) -> tuple[list[Fault], list[str]]:
    """Masks without an image: faults in needed splits, otherwise a note."""
    what = f"is the mask of no image that {matches.images.text} matches"
    of_split = matches.masks.uses("{split}")
    bad = [mask for mask in matches.spare if splits.hashed or (of_split and mask.split in needed)]
    others = [mask.shown for mask in matches.spare if mask not in bad]
    notes = [f"{len(others)} masks have no image and are not used, the first is {others[0]}"] if others else []
    return [Fault(Kind.NO_PICTURE, mask.shown, what, mask.split) for mask in bad], notes


def _without_mask(matches: _Matches, splits: Splits, needed: frozenset[str], root: Path) -> list[Fault]:
    """Faults of images without a mask."""
    lonely = {path for path in splits.members() if not matches.partners[path]}
    hint = masks_per_class_hint(root) if lonely else ""
    hint = hint or _hint(matches, [picture for path, picture in matches.pictures.items() if path in lonely])
    bare = {split for split, paths in splits.paths.items() if lonely.issuperset(paths)}
    found = []
    for split, paths in splits.paths.items():
        more = ""
        if split in bare & needed and len(bare) < len(splits.paths):
            labelled = ", ".join(other for other in splits.paths if other not in bare)
            more = f"; no image of split {split} has one, and --train_split and --eval_split may name {labelled}"
        for picture in (matches.pictures[path] for path in paths if path in lonely):
            what = f"has no mask; must be {matches.masks.filled(picture)}{hint}{more}"
            found.append(Fault(Kind.NO_MASK, picture.shown, what, split))
    return found


def _weight(matches: _Matches, path: str, root: Path) -> tuple[str, Path | None]:
    """Printable name and file of an image's weight map; an empty name and None without."""
    found = matches.maps.get(path)
    return (found[0].shown, root / found[0].path) if found else ("", None)


def _without_weight(matches: _Matches, splits: Splits, trained: Collection[str]) -> list[Fault]:
    """Faults of images without a weight map, or with several. A split that is not trained on may have none at all."""
    found: list[Fault] = []
    for split, paths in splits.paths.items() if matches.weights else ():
        assert matches.weights
        if split not in trained and not any(matches.maps[path] for path in paths):
            continue
        for path in paths:
            names = [file.shown for file in matches.maps[path]]
            if len(names) != 1:
                what = f"has {len(names)} weight maps, {', '.join(names)}; must be one"
                if not names:
                    what = f"has no weight map; must be {matches.weights.filled(matches.pictures[path])}"
                found.append(Fault(Kind.WEIGHTS, matches.pictures[path].shown, what, split))
    return found


def _other_masks(pairs: Mapping[str, Pair], splits: Splits) -> list[str]:
    """A note if lists name other masks than those that are used."""
    found = [
        (listed, pairs[path])
        for path, listed in splits.masks.items()
        if path in pairs and split_lists.contradict(listed, pairs[path].mask_name)
    ]
    if not found:
        return []
    listed, pair = found[0]
    what = f"lists name other masks than those used: {printable(listed)} of {pair.name}, which has {pair.mask_name}"
    return [f"{what}, and {len(found) - 1} more; --mask_files must say which are meant"]


def _ambiguous(matches: _Matches, splits: Splits, root: Path) -> list[Fault]:
    """Faults of images with several masks, and of masks shared by images."""
    found, first, members = [], dict[str, str](), splits.members()
    hint = masks_per_class_hint(root) if any(len(matches.partners[path]) > 1 for path in members) else ""
    for path in sorted(members):
        masks, name = matches.partners[path], matches.pictures[path].shown
        names = [mask.shown for mask in masks]
        if len(masks) > 1:
            what = f"has {len(masks)} masks, {', '.join(names)}; must be one{hint}"
            found += [Fault(Kind.AMBIGUOUS, name, what, split) for split in members[path]]
        elif masks and (other := first.setdefault(masks[0].path, path)) != path:
            what = f"has the mask of {matches.pictures[other].shown} too, {names[0]}; each must have its own"
            found += [Fault(Kind.AMBIGUOUS, name, what, split) for split in (*members[path], *members[other])]
    return found


def _unreadable(pairs: Mapping[str, Pair], splits: Splits) -> list[Fault]:
    """Faults of broken links, folders and devices in the place of files."""
    return [
        Fault(Kind.UNREADABLE, name, f"cannot be read: {reason}; must be a complete image", split)
        for path, of_path in splits.members().items()
        if path in pairs
        for name, file in pairs[path].files.items()
        if (reason := _why_unreadable(file))
        for split in of_path
    ]


def _why_unreadable(file: Path) -> str:
    """Why a file cannot be opened, or must not be: opening a FIFO blocks until another process writes to it."""
    try:
        mode = os.stat(file).st_mode
    except OSError as error:
        return f"it is {_link(file)}" if file.is_symlink() else str(error.strerror)
    if stat.S_ISDIR(mode):
        return os.strerror(errno.EISDIR)
    return "" if stat.S_ISREG(mode) else "it is no regular file"


def _link(path: Path) -> str:
    return f"a link to {printable(os.readlink(path))}, which cannot be followed"


def _hint(matches: _Matches, pictures: Sequence[PictureFile]) -> str:
    """Suggests flags for masks whose file names contain the image's name and more."""
    for picture in pictures[:1]:
        for mask in sorted(matches.spare, key=lambda each: len(each.path)):  # 1_mask.png before 10_mask.png
            folder, _, file = mask.path.rpartition("/")
            if picture.name in file and (not picture.split or picture.split in folder):
                pattern = f"{folder}/{file.replace(picture.name, '{name}', 1)}".removeprefix("/")
                if picture.split:
                    pattern = pattern.replace(picture.split, "{split}", 1)
                flags = f"--image_files='{matches.images.text}' --mask_files='{printable(pattern)}'"
                return f"; if {mask.shown} is it: {flags}"
    return ""
