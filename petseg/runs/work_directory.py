"""Work directory of a run: layout, config.json, changes allowed on resume, lock."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from petseg import config as config_lib, custom_code
from petseg.classes import PETS, Classes
from petseg.config import CONFIG_FORMAT, Config
from petseg.config.options import SCORING, TRAINING
from petseg.errors import ConfigError, WorkDirectoryError
from petseg.files import make_folder, printable, write_json

PACKAGES = ("petseg", "tensorflow", "keras", "tensorflow-datasets", "tensorboard", "numpy")


class WorkDirectory:
    """Work directory of a run.

    Attributes:
      config_file: the resolved config, with versions, devices and git commit.
      data_file: record of the data, see `training_data_record`; runs of older versions have none.
      best: folder of the checkpoint with the highest mean IoU.
      results: folder of results files, one JSON file per evaluation.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.data_file = self.path / "training_data.npz"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self.results = self.path / "results"
        self.figures = self.path / "figures"
        self.metrics_file = self.path / "metrics.csv"
        self._lock_file = self.path / "lock"

    @classmethod
    def for_training(cls, path: str, dataset: str) -> "WorkDirectory":
        """Work directory of a training run; a new one under `runs/` if the path is empty.

        Raises WorkDirectoryError if it is a file, cannot be written to, or holds other files.
        """
        if not path:
            now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
            path = os.path.join("runs", f"{now}-{re.sub(r'[^A-Za-z0-9_.]+', '-', dataset)}")
        check_is_local(path)
        workdir = cls(path)
        if workdir.path.exists() and not workdir.path.is_dir():
            raise WorkDirectoryError(f"--workdir={path}: is a file; must be a folder")
        if workdir.path.is_dir() and not workdir.config_file.exists() and workdir._holds_foreign_files():
            raise WorkDirectoryError(f"--workdir={path}: holds other files but no config.json; must be a new folder")
        workdir._check_writable()
        return workdir

    def load_config(self) -> Config:
        """The config with which the run was last started; raises WorkDirectoryError if it cannot be read."""
        return self._load_record().config

    def load_class_weights(self) -> tuple[float, ...] | None:
        """Class weights in use, given or computed; raises WorkDirectoryError if config.json cannot be read."""
        return self._load_record().class_weights

    def load_counts(self, config: Config) -> "Counts":
        """Class counts of the training masks that the flags still ask for, so that the run resumes with them.

        With --cache=none a sample of a large split is counted, with other caches all of it. Raises WorkDirectoryError
        if config.json cannot be read.
        """
        record = self._load_record()
        before, now = record.config.loss, config.loss
        is_kept = now.counts_classes and all(
            getattr(before, name) == getattr(now, name) for name in ("class_weights", "class_weight_normalization")
        )
        return Counts(record.class_weights if is_kept else None, record.rare_classes)

    def load_classes(self) -> Classes:
        """Classes of the run; raises WorkDirectoryError if config.json cannot be read."""
        return self._load_record().classes

    def _load_record(self) -> "_Record":
        if not self.config_file.is_file():
            raise WorkDirectoryError(f"--workdir={self.path}: no run is here (there is no {self.config_file})")
        try:
            record = json.loads(self.config_file.read_text())
            if record["format"] != CONFIG_FORMAT:
                raise WorkDirectoryError(
                    f"{self.config_file}: has format {record['format']}; this petseg reads format {CONFIG_FORMAT}"
                )
            weights = record["class_weights"]
            rare = record.get("rare_classes")
            classes = record.get("classes")  # early versions knew only these and recorded none
            return _Record(
                config_lib.from_dict(_with_earlier_choices(record["config"], weights)),
                None if weights is None else tuple(map(float, weights)),
                PETS if classes is None else Classes.from_dict(classes, stored=True),
                None if rare is None else tuple(map(int, rare)),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise WorkDirectoryError(f"{self.config_file}: not a config that can be read: {error}") from error

    def reconcile(self, config: Config) -> dict[str, tuple[Any, Any]]:
        """Changes of the config on resume: flag -> (old, new).

        Raises WorkDirectoryError if a change does not fit the existing checkpoints, and ConfigError if user code
        is missing.
        """
        changes = config_lib.changes(self.load_config(), config)
        changes.pop("workdir", None)
        fixed = [f"--{name} was {old!r}, is now {new!r}" for name, (old, new, is_fixed) in changes.items() if is_fixed]
        if fixed:
            raise WorkDirectoryError(
                f"--workdir={self.path}: belongs to a run that cannot be resumed with other values: {'; '.join(fixed)}"
            )
        self.check_code(config)
        return {name: (old, new) for name, (old, new, _) in changes.items()}

    def check_code(self, config: Config, where: Sequence[str] = (SCORING, TRAINING)) -> None:
        """Checks that user code that the run was started with, and that flags still name, has not changed.

        `where` is that of `config.code_references`.

        Raises WorkDirectoryError if it has changed, and ConfigError if it is missing.
        """
        record = json.loads(self.config_file.read_text())
        before = config_lib.code_references(self.load_config())
        hashes = {"network": record.get("network_sha256"), **record.get("code_sha256", {})}
        for flag, reference in config_lib.code_references(config, where).items():
            if before.get(flag) == reference and hashes.get(flag) != custom_code.fingerprint(flag, reference):
                raise WorkDirectoryError(
                    f"--{flag}={reference}: its file has changed since the run in {self.path} began; must be the same"
                )

    def check_classes(self, classes: Classes) -> None:
        """Raises WorkDirectoryError if the run here has other classes; display colours may differ."""
        if not self.config_file.is_file():
            return
        before = self.load_classes()
        if before.without_display_colors != classes.without_display_colors:
            was, now = (", ".join(each.names) for each in (before, classes))
            details = f"{was}; now they are {now}" if was != now else f"{was}, but with other values or foreground"
            raise WorkDirectoryError(f"--workdir={self.path}: belongs to a run whose classes are {details}")

    def save_config(
        self,
        config: Config,
        *,
        classes: Classes,
        class_weights: Sequence[float] | None,
        devices: Sequence[str],
        rare_classes: Sequence[int] | None = None,
    ) -> None:
        """Writes config.json: the resolved config and what is needed to repeat the run."""
        record = {
            "format": CONFIG_FORMAT,
            "config": config_lib.to_dict(config),
            "classes": classes.to_dict(),
            "class_weights": class_weights,
            "rare_classes": rare_classes,
            "code_sha256": config_lib.code_hashes(config),
            "command": sys.argv,
            "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in PACKAGES}},
            "devices": list(devices),
            "git_commit": _git_commit(),
        }
        write_json(self.config_file, record)

    def describe(self) -> str:
        """Command, versions, devices and git commit of the run, as markdown."""
        record = json.loads(self.config_file.read_text())
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        facts = {
            "command": f"`{shlex.join(record['command'])}`",
            "versions": versions,
            "devices": ", ".join(record["devices"]),
            "git commit": record["git_commit"] or "unknown",
            "work directory": f"`{self.path}`",
        }
        return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in facts.items())])

    def contents(self) -> dict[str, str]:
        """Description of each file and folder, by name."""
        return {
            "checkpoints/": "the newest checkpoints; the same command with this --workdir resumes from there",
            "best/": "the checkpoint with the highest mean IoU (of averaged weights, if any), and its step",
            "results/": "the scores of each evaluation",
            "figures/": "curves, predictions, confusion matrix, model",
            "train/, eval/, ...": "TensorBoard event files",
            "metrics.csv": "all logged numbers",
            "config.json": "flags, versions, devices, git commit",
            "training_data.npz": "digests that detect changed data and scores on training images",
        }

    def results_file(self, split: str, step: int, variant: str = "") -> Path:
        """`results/<split>-<step>[.<variant>].json`; brackets made safe: `train[:90%]` -> `train.start-90pct`."""
        name = re.sub(r"\[:", "[start:", split)
        name = re.sub(r":\]", ":end]", name).replace("[", ".").replace("]", "").replace(":", "-").replace("%", "pct")
        suffix = f".{variant}" if variant else ""
        return self.results / f"{re.sub(r'[^A-Za-z0-9_.+-]', '_', name)}-{step}{suffix}.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the work directory, or raises WorkDirectoryError; the system frees the lock when this process ends."""
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        make_folder(self.path)
        lock = filelock.FileLock(self._lock_file)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            raise WorkDirectoryError(f"--workdir={self.path}: another process is training here") from None
        try:
            yield
        finally:
            self._lock_file.unlink(missing_ok=True)
            lock.release()
            for folder in made:  # if they are empty, because the run ended before it wrote anything
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _holds_foreign_files(self) -> bool:
        ours = {self._lock_file.name, self.config_file.name + ".tmp"}  # left by a process that was killed early
        return any(path.name not in ours for path in self.path.iterdir())

    def _check_writable(self) -> None:
        """Writes an unnamed temporary file where the folder is or will be."""
        nearest = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        try:
            with tempfile.TemporaryFile(dir=nearest):
                pass
        except OSError as error:
            raise WorkDirectoryError(f"--workdir={self.path}: cannot be written to: {error.strerror}") from error


def check_is_local(path: str) -> None:
    """Raises WorkDirectoryError if a work directory is an address, such as `gs://bucket/run`, or not UTF-8."""
    if path != path.encode("utf-8", "ignore").decode():
        shown = printable(path)
        raise WorkDirectoryError(f"--workdir={shown}: must be a path in UTF-8, because TensorFlow writes to no other")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise WorkDirectoryError(
            f"--workdir={path}: must be a folder, because locks, renames and fsync need a file system; train in a "
            "local folder and copy it there meanwhile (gsutil -m rsync -r, aws s3 sync, rclone sync)"
        )


class _Record(NamedTuple):
    """The parts of config.json that petseg reads."""

    config: Config
    class_weights: tuple[float, ...] | None
    classes: Classes
    rare_classes: tuple[int, ...] | None


class Counts(NamedTuple):
    """Results of counting the classes in the training masks; None: not counted, or to be counted again."""

    class_weights: tuple[float, ...] | None = None  # one weight per class, normalised
    rare_classes: tuple[int, ...] | None = None  # ids of the classes with few pixels


def _with_earlier_choices(values: dict[str, Any], class_weights: Sequence[float] | None) -> dict[str, Any]:
    """The values of a config.json, with the earlier behaviour for choices that are newer than the file."""
    normalization = "mean" if class_weights is None else "sum"  # without weights there is no scale to keep
    loss = {"class_weight_normalization": normalization, **values.get("loss", {})}
    # Earlier versions read all images as 8-bit RGB.
    data = {"channels": 3, "image_dtype": "uint8", "intensity_range": "0,255", **values.get("data", {})}
    return {**values, "data": data, "loss": loss, "runtime": {"example_order": 1, **values.get("runtime", {})}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of the checkout that this code runs from, with `+changes` if files differ; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
