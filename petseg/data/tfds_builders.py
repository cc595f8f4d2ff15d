"""TFDS builders by name: finds prepared data sets, downloads or draws missing ones, one process at a time."""

import contextlib
import io
import logging
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from petseg import files
from petseg.classes import Classes
from petseg.config import DataConfig
from petseg.config.data_config import WEIGHT_SCALES, check_dataset_name
from petseg.errors import DataError, one_line

logger = logging.getLogger(__name__)
EMBEDDED = "synthetic_pets"


def prepare(dataset: str, data_dir: str) -> Any:
    """The TFDS builder of a prepared data set; downloads and prepares it if necessary.

    Any version on disk is used if none is asked for. Concurrent processes wait for the one that prepares it. Raises
    ConfigError if the name is invalid, and DataError if the data set is unknown, or can neither be found nor be
    downloaded.
    """
    builder, exists = find_builder(dataset, data_dir)
    if exists:
        return builder
    try:
        with _one_process_at_a_time(builder):
            builder = load_builder(dataset, data_dir)
            if not builder.data_path.exists():
                _draw_or_download(builder)
    except Exception as error:  # no network, a full disk, a moved archive: no common class
        if builder.name == EMBEDDED:
            raise DataError(f"{dataset} cannot be drawn into {builder.data_path} ({one_line(error)})") from error
        raise DataError(
            f"{dataset} is neither under {builder.data_path.parent} nor can it be downloaded ({one_line(error)}). "
            "Give the folder of a prepared copy with --data_dir=PATH, or train on the embedded data set, which needs "
            "no download, with --dataset=synthetic_pets"
        ) from error
    return builder


def find_builder(dataset: str, data_dir: str) -> tuple[Any, bool]:
    """The builder of a data set, if possible of a version on disk, and whether its files exist."""
    check_dataset_name(dataset)
    builder = load_builder(dataset, data_dir)
    if builder.data_path.exists():
        return builder, True
    if builder.data_path.parent.exists() and ":" not in dataset:
        older = load_builder(f"{dataset}:*.*.*", data_dir)  # a version on disk other than TFDS's newest
        if older.data_path.exists():
            return older, True
    return builder, False


def load_builder(dataset: str, data_dir: str) -> Any:
    """The builder of a data set, prepared or not; raises DataError if the name is unknown."""
    if dataset.split(":")[0] == EMBEDDED:
        from petseg.data import synthetic_pets  # noqa: F401 (importing it registers the builder)
    try:
        return tfds.builder(dataset, **({"data_dir": os.path.expanduser(data_dir)} if data_dir else {}))
    except Exception as error:  # TFDS passes on the errors of its readers and registries
        raise DataError(f"no data set {dataset}: {one_line(error)}") from error


def _one_process_at_a_time(builder: Any) -> contextlib.AbstractContextManager[None]:
    """Locks the files of a data set for preparing them.

    TFDS draws the name of its temporary folder from Python's `random`, which every run seeds: without a lock, processes
    with one seed would write into the same folder.
    """
    root = os.fspath(builder.data_dir_root)
    if "://" in root:  # files in a bucket cannot be locked
        return contextlib.nullcontext()
    Path(root).mkdir(parents=True, exist_ok=True)
    name = builder.info.full_name.replace("/", "-")
    return files.process_lock(Path(root, f".{name}.lock"), f"prepares {builder.data_path}")


def _draw_or_download(builder: Any) -> None:
    """Downloads and prepares a data set with TFDS."""
    embedded = builder.name == EMBEDDED
    if embedded:
        logger.info("drawing %s into %s", builder.name, builder.data_path)
    else:
        logger.info("%s is not under %s: preparing it with TFDS", builder.name, builder.data_path.parent)
    if embedded or not (sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)):
        tfds.disable_progress_bar()  # hundreds of lines in a log
    # TFDS would print a message about a download of unknown size.
    quiet = contextlib.redirect_stdout(io.StringIO()) if embedded else contextlib.nullcontext()
    state = random.getstate()  # so that initial weights do not depend on whether data were prepared
    try:
        with quiet:
            write(builder)
    finally:
        random.setstate(state)


def write(builder: Any, **options: Any) -> None:
    """`builder.download_and_prepare`, with fsync: a data set that exists after a power failure is complete.

    TFDS forces no file onto the disk before it gives the folder its name.
    """
    write_info = builder.info.write_to_directory

    def write_info_and_sync(folder: str, **more: Any) -> None:  # the last file
        write_info(folder, **more)
        files.sync_tree(Path(folder))

    builder.info.write_to_directory = write_info_and_sync
    builder.download_and_prepare(**options)


def check_features(builder: Any, config: DataConfig, classes: Classes) -> None:
    """Raises DataError if a data set lacks its features of images, masks or weight maps, or they hold other things."""
    features, name = dict(builder.info.features), config.dataset
    for flag in ("image_feature", "mask_feature"):
        if not isinstance(features.get(feature := getattr(config, flag)), tfds.features.Image):
            found = ", ".join(sorted(key for key in features if isinstance(features[key], tfds.features.Image)))
            raise DataError(
                f"{name}: --{flag}={feature}: must be an image feature ({found or 'there is none'}); "
                f"all features: {', '.join(sorted(features))}"
            )
    masks = features[config.mask_feature]
    if (dtype := np.dtype(masks.np_dtype)).kind == "f":
        raise DataError(f"{name}: its masks are {dtype}; must be whole numbers of 8 or 16 bits, or colours")
    if classes.colored != (masks.shape[-1] == 3):
        what, needed = ("colours", "numbers") if classes.colored else ("numbers", "colours")
        raise DataError(
            f"{name}: its masks have {masks.shape[-1]} channels, but the values of the classes are {what}; must be "
            f"{needed}"
        )
    if config.weight_feature:
        weights = features.get(config.weight_feature)
        shape, dtype = getattr(weights, "shape", None), np.dtype(getattr(weights, "np_dtype", object))
        if (
            not isinstance(shape, tuple)
            or len(shape) < 2
            or shape[2:] not in ((), (1,))
            or dtype.name not in WEIGHT_SCALES
        ):
            what = f"is {dtype} {list(shape)}" if isinstance(shape, tuple) else "is no array"
            raise DataError(
                f"{name}: --weight_feature={config.weight_feature}: {what}; must be {', '.join(WEIGHT_SCALES)} [H, W] "
                f"or [H, W, 1]; all features: {', '.join(sorted(features))}"
            )
