"""Converts a folder of images and masks to a TFDS data set, once; training then reads it like any other.

The copy is in petseg's cache folder, under a name derived from names, sizes and times of all files and from the
classes, so a later start opens no image. Digests of all images and masks are stored beside the records; they reveal
leaks between splits and changes of the data.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import random
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import PIL
import tensorflow_datasets as tfds

from petseg import files
from petseg.classes import Classes
from petseg.config import CACHE_DIR, DataConfig
from petseg.config.data_config import FOLDER
from petseg.data import digests, tfds_builders
from petseg.data.folders import faults, folder_files, folder_layout, mask_values
from petseg.data.folders.faults import Fault
from petseg.data.folders.folder_layout import Layout
from petseg.data.folders.inferred_classes import CLASSES_FILE
from petseg.data.folders.mask_values import MaskCoding
from petseg.data.folders.pair_files import DecodedPair
from petseg.data.folders.weight_map_survey import WeightSurvey
from petseg.data.images import BandCounts
from petseg.data.mask_survey import MaskSurvey
from petseg.errors import ConfigError, DataError, one_line
from petseg.files import printable

WEIGHT = "weight"  # feature
FORMAT = 4  # increase when the same folder would give other records
logger = logging.getLogger(__name__)


def prepare(config: DataConfig, classes: Classes | None = None) -> tuple[Any, Classes]:
    """Returns the data set of a folder, and writes it if it does not exist.

    Returns:
      a TFDS builder with the features `image`, `segmentation_mask` (class ids), `file_name` and, with --weight_files,
      `weight`; and the classes.

    Raises ConfigError if the classes are invalid, or the files cannot be written, and DataError if the folder has
    faults; names the first.
    """
    layout = folder_files.pages_as_pairs(folder_layout.scan_folder(config), config)
    if layout.faults:
        raise faults.as_error(layout.faults, config.data_dir, faults.check_command(config))
    cache = Path(config.cache_dir or CACHE_DIR).expanduser().absolute()
    if classes and (own := _with_classes_found(config, layout, cache)) and own[1] == classes:
        return own  # a resumed run passes the classes that it inferred itself
    if classes and not config.classes:
        classes.check_meanings(folder_files.read_classes(config), f"{config.data_dir}/{CLASSES_FILE}")
    classes = classes or folder_files.read_classes(config)
    builder = _FolderBuilder(config, layout, classes, data_dir=cache)
    if not builder.data_path.exists():
        size = sum(path.stat().st_size for pair in folder_files.all_pairs(layout) for path in pair.files.values())
        flag = f"--cache_dir={config.cache_dir}"
        with files.explain_write_errors(cache, flag=flag, error_class=ConfigError, needed=size):
            files.make_folder(cache)
            lock = cache / f".{builder.info.full_name.replace('/', '-')}.lock"
            with files.process_lock(lock, f"reads {printable(config.data_dir)}"):
                builder = _FolderBuilder(config, layout, classes, data_dir=cache)
                if not builder.data_path.exists():
                    found, bad = (classes, []) if classes else folder_files.infer_classes(layout)
                    if not found:
                        bad = faults.partition(bad, layout.needed)[0] or bad
                        raise faults.as_error(bad, config.data_dir, faults.check_command(config))
                    builder = _FolderBuilder(config, layout, classes, found, data_dir=cache)
                    builder.write()
    _refuse_left_out(builder, layout, config)
    stored = classes or _stored_classes(builder)
    if not classes:
        logger.info(
            "%s: no --classes, and no classes.json there; classes as found in the masks: %s to %s, for %s",
            printable(config.data_dir), stored.names[0], stored.names[-1], mask_values.allowed_values_text(stored),
        )  # fmt: skip
    return builder, stored


def _with_classes_found(config: DataConfig, layout: Layout, cache: Path) -> tuple[Any, Classes] | None:
    """The data set with classes inferred from the masks; None if it was not written yet."""
    builder = _FolderBuilder(config, layout, None, data_dir=cache)
    if builder.data_path.exists():
        _refuse_left_out(builder, layout, config)
    return (builder, _stored_classes(builder)) if builder.data_path.exists() else None


def _stored_classes(builder: "_FolderBuilder") -> Classes:
    return Classes.from_dict(builder.info.metadata["classes"], stored=True)


def _refuse_left_out(builder: "_FolderBuilder", layout: Layout, config: DataConfig) -> None:
    """Raises DataError if a split that is needed was left out of the copy because of faults."""
    for split, why in left_out_splits(builder).items():
        if split in layout.needed:
            raise DataError(f"{config.data_dir}: {why}. All faults: {faults.check_command(config)}")


def band_counts(builder: Any) -> dict[str, BandCounts]:
    """The bands of the images in the copy of a folder, by split."""
    return {split: BandCounts(rows) for split, rows in (builder.info.metadata or {}).get("bands", {}).items()}


def left_out_splits(builder: Any) -> dict[str, str]:
    """Why splits are missing from the copy of a folder, by the name of the split."""
    return dict((builder.info.metadata or {}).get("left_out", {}))


class _FolderBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """TFDS builder of a folder."""

    name = FOLDER
    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        config: DataConfig,
        layout: Layout,
        given: Classes | None,
        classes: Classes | None = None,
        *,
        data_dir: Path,
    ):
        self._folder, self._layout, self._classes = config, layout, classes
        self._bad: list[Fault] = []
        self._digests: dict[str, list[tuple[int, int]]] = {}
        self._bands: dict[str, BandCounts] = {}
        self._weights = WeightSurvey()
        self._written = layout.splits
        title = re.sub(r"[^A-Za-z0-9_.]+", "-", layout.name).strip("-.")[:60] or FOLDER
        name = f"{title}-{_fingerprint(layout, given, _file_format(config))}"
        log = logging.getLogger("absl")
        level = log.level
        log.setLevel(logging.ERROR)  # TFDS warns of configs that no class lists
        try:
            super().__init__(
                data_dir=data_dir,
                config=tfds.core.BuilderConfig(name=name, description=printable(str(layout.root))),
                file_format=_file_format(config),
            )
        finally:
            log.setLevel(level)

    def write(self) -> None:
        """Reads every pair and writes the data set; leaves out unneeded splits that have faults.

        Raises DataError if a needed split has a fault.
        """
        layout, where = self._layout, printable(self._folder.data_dir)
        sizes = ", ".join(f"{split} {len(pairs)}" for split, pairs in layout.splits.items())
        logger.info("%s: %s pairs (%s); reading and checking them once, copying them to %s",
                    where, sizes, layout.origin, self.data_path)  # fmt: skip
        for note in (*layout.notes, *layout.left_out.values()):
            logger.warning("%s: %s", where, note)
        bad = self._try_to_write(layout.left_out)
        blocking, others = faults.partition(bad, layout.needed)
        if others and not blocking and len(others) < len(layout.splits):
            more = {split: faults.left_out_note(split, of_it) for split, of_it in others.items()}
            for note in more.values():
                logger.warning("%s: %s", where, note)
            bad = blocking = self._try_to_write({**layout.left_out, **more})
        if bad:
            raise faults.as_error(blocking or bad, where, faults.check_command(self._folder))

    def _try_to_write(self, left_out: Mapping[str, str]) -> list[Fault]:
        """Writes the data set without some splits; returns the faults, and writes nothing if there are any."""
        self._written = {split: pairs for split, pairs in self._layout.splits.items() if split not in left_out}
        if left_out:
            self.info.metadata["left_out"] = dict(left_out)
        self._bad = []
        tfds.disable_progress_bar()  # `read_pairs` has its own
        state = random.getstate()  # TFDS draws a folder name from it, Keras the seeds of initial weights
        try:
            with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as nothing:
                tfds_builders.write(self, download_dir=nothing)  # TFDS creates it even without downloads
        except Exception as error:
            if not self._bad and isinstance(error, OSError):
                raise
            if not self._bad:  # TensorFlow's own errors, of a full disk for instance
                what = f"cannot be written as a data set into {self.data_path} ({one_line(error)})"
                raise DataError(f"{self._folder.data_dir}: {what}") from error
        finally:
            random.setstate(state)
        return self._bad

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(),
            "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
            "file_name": tfds.features.Text(),
        }
        if self._layout.has_weights:
            features[WEIGHT] = tfds.features.Image(shape=(None, None, 1))  # empty in a split without weight maps
        stored = self._classes.to_dict() if self._classes else {}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Images and masks in the folder {self._layout.name}.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(classes=stored),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        assert self._classes is not None
        written = dataclasses.replace(self._layout, splits=self._written)
        pairs = folder_files.read_pairs(written, MaskCoding(self._classes))
        survey = MaskSurvey(self._classes)
        self._digests, self._bands, self._weights = {}, {}, WeightSurvey()
        return {split: self._generate_examples(split, pairs, survey) for split in self._written}

    def _generate_examples(
        self, split: str, pairs: Iterator[tuple[str, DecodedPair]], survey: MaskSurvey
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Takes the examples of a split from an iterator over the pairs of all splits."""
        for i, _ in enumerate(self._written[split]):
            _, pair = next(pairs)
            if pair.picture and pair.bands:
                of_split = self._bands.setdefault(split, BandCounts())
                of_split.add(pair.bands, pair.name, varies=pair.picture.alpha_varies)
            faults = [*pair.faults, *self._weights.add(split, pair)]
            if faults:
                self._bad = [*faults, *(fault for _, other in pairs for fault in other.faults)]
                raise DataError("some pairs cannot be used")  # `write` reports which
            assert pair.ids is not None
            assert pair.facts is not None
            if split in self._layout.needed:
                survey.add(pair.mask_name, pair.facts, either_way=pair.either_way)
            of_picture = int.from_bytes(pair.digest[:8], "little")
            of_labels = digests.of_labels(pair.ids, pair.weight.pixels if pair.weight else None)
            self._digests.setdefault(split, []).append((of_picture, of_labels))
            weight = {WEIGHT: pair.weight_file} if self._layout.has_weights else {}
            yield i, {"image": pair.image, "segmentation_mask": pair.mask, "file_name": pair.name, **weight}
        if split == list(self._written)[-1]:
            self._bad = survey.faults()
            if self._bad:
                raise DataError("the masks do not have the classes")
            self.info.metadata["mask_notes"] = survey.notes()
            # In the temporary folder that TFDS renames when the data set is complete.
            self.info.metadata["bands"] = {name: counts.rows() for name, counts in self._bands.items()}
            self.info.metadata["weights"] = self._weights.rows()
            found = {name: digests.from_rows(rows) for name, rows in self._digests.items()}
            digests.write(Path(self.data_path) / digests.FILE, found)


def _file_format(config: DataConfig) -> str | None:
    """The file format of a copy; None for TFDS's default. --cache=none needs random access."""
    return "array_record" if config.cache == "none" else None


def _fingerprint(layout: Layout, classes: Classes | None, file_format: str | None) -> str:
    """Hash of the names, sizes and times of all files and of the classes; opens no file."""

    def of_file(path: Path) -> tuple[int, int]:
        found = path.stat()
        return found.st_size, found.st_mtime_ns

    key = {
        "format": FORMAT,
        "pillow": PIL.__version__,  # decodes some formats
        "classes": _coding_of(classes) if classes else None,
        "splits": {
            split: [[part for name, path in pair.files.items() for part in (name, *of_file(path))] for pair in pairs]
            for split, pairs in layout.splits.items()
        },
        **({"left_out": sorted(layout.left_out)} if layout.left_out else {}),
        **({"file_format": file_format} if file_format else {}),
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def _coding_of(classes: Classes) -> dict[str, Any]:
    """Names, values and ignored values: what the copy depends on, unlike display colours and foreground."""
    members = [(each.name, each.value, *each.more_values) for each in classes.members]
    return {"members": members, "ignored": classes.ignored}
