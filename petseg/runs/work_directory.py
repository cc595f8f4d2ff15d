"""A run's folder: its layout, its config.json, and whether it can be used for what is asked."""

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

from petseg import config as config_lib
from petseg.classes import PETS, Classes
from petseg.config import CONFIG_FORMAT, Config
from petseg.errors import ConfigError, WorkDirectoryError
from petseg.files import write_json
from petseg.models import custom_network

PACKAGES = ("petseg", "tensorflow", "keras", "tensorflow-datasets", "tensorboard", "numpy")


class WorkDirectory:
    """Where a run keeps what it knows.

    Attributes:
      path: path of the folder.
      config_file: the resolved config, with versions, devices and git commit.
      data_file: what the run is trained and scored on, see `training_data`; not there in runs of older versions.
      checkpoints: folder of the newest checkpoints.
      best: folder of the checkpoint with the highest mean IoU.
      results: folder of scores, one JSON file for each evaluation.
      figures: folder of pictures.
      metrics_file: every logged number, as CSV.
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
        """The work directory of a training run; a new one under `runs/` if the path is empty.

        Raises:
          WorkDirectoryError: if it is a file, cannot be written to, or holds something else.
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
        """The config that the run was last started with.

        Raises:
          WorkDirectoryError: if there is none, or it cannot be read.
        """
        return self._load_record().config

    def load_class_weights(self) -> tuple[float, ...] | None:
        """The class weights that the run trains with, computed ones included.

        Raises:
          WorkDirectoryError: if there is no config, or it cannot be read.
        """
        return self._load_record().class_weights

    def load_classes(self) -> Classes:
        """The classes that the run tells apart.

        Raises:
          WorkDirectoryError: if there is no config, or it cannot be read.
        """
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
            classes = record.get("classes")  # without them, they are the only ones there were
            return _Record(
                config_lib.from_dict(_with_earlier_choices(record["config"], weights)),
                None if weights is None else tuple(map(float, weights)),
                PETS if classes is None else Classes.from_dict(classes, stored=True),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise WorkDirectoryError(f"{self.config_file}: not a config that can be read: {error}") from error

    def reconcile(self, config: Config) -> dict[str, tuple[Any, Any]]:
        """What a run that goes on changes in its config: flag -> (old, new).

        Raises:
          WorkDirectoryError: if a change cannot be reconciled with the checkpoints that are here.
          ConfigError: if the code of a network of one's own is not there.
        """
        changes = config_lib.changes(self.load_config(), config)
        changes.pop("workdir", None)
        fixed = [f"--{name} was {old!r}, is now {new!r}" for name, (old, new, is_fixed) in changes.items() if is_fixed]
        if fixed:
            raise WorkDirectoryError(
                f"--workdir={self.path}: belongs to a run that cannot go on with other values: {'; '.join(fixed)}"
            )
        self.check_network(config)
        return {name: (old, new) for name, (old, new, _) in changes.items()}

    def check_network(self, config: Config) -> None:
        """Whether the code of a network of one's own, if there is one, is that which the run here was started with.

        Raises:
          WorkDirectoryError: if it has changed since.
          ConfigError: if it is not there.
        """
        network, record = config.model.network, json.loads(self.config_file.read_text())
        if network and record.get("network_sha256") != custom_network.fingerprint(network):
            raise WorkDirectoryError(
                f"--network={network}: {custom_network.source_file(network)} has changed since the run in {self.path} "
                "began; must be the same file"
            )

    def check_classes(self, classes: Classes) -> None:
        """Raises WorkDirectoryError if there is a run here with other classes; display colours may differ."""
        if not self.config_file.is_file():
            return
        before = self.load_classes()
        if before.without_display_colors != classes.without_display_colors:
            was, now = (", ".join(each.names) for each in (before, classes))
            said = f"{was}; now they are {now}" if was != now else f"{was}, but with other values or foreground"
            raise WorkDirectoryError(f"--workdir={self.path}: belongs to a run whose classes are {said}")

    def save_config(
        self, config: Config, *, classes: Classes, class_weights: Sequence[float] | None, devices: Sequence[str]
    ) -> None:
        """Writes config.json: the config, what became of it here, and what a reader needs to repeat the run.

        Args:
          config: the resolved config.
          classes: the classes.
          class_weights: the class weights in use, normalised.
          devices: names of the devices in use.
        """
        record = {
            "format": CONFIG_FORMAT,
            "config": config_lib.to_dict(config),
            "classes": classes.to_dict(),
            "class_weights": class_weights,
            "network_sha256": custom_network.fingerprint(config.model.network),
            "command": sys.argv,
            "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in PACKAGES}},
            "devices": list(devices),
            "git_commit": _git_commit(),
        }
        self.path.mkdir(parents=True, exist_ok=True)
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
        """What lies where, by name."""
        return {
            "checkpoints/": "the newest checkpoints; the same command with this --workdir goes on from there",
            "best/": "the checkpoint with the highest mean IoU (of averaged weights, if any), and when that was",
            "results/": "the scores of each evaluation",
            "figures/": "curves, predictions, confusion matrix, model",
            "train/, eval/, ...": "what TensorBoard shows",
            "metrics.csv": "every number that was logged",
            "config.json": "flags, versions, devices, git commit",
            "training_data.npz": "digests by which a change of the data is noticed, and a score on training images",
        }

    def results_file(self, split: str, step: int, variant: str = "") -> Path:
        """`results/<split>-<step>[.<variant>].json`; brackets made safe: `train[:90%]` -> `train.start-90pct`."""
        name = re.sub(r"\[:", "[start:", split)
        name = re.sub(r":\]", ":end]", name).replace("[", ".").replace("]", "").replace(":", "-").replace("%", "pct")
        suffix = f".{variant}" if variant else ""
        return self.results / f"{re.sub(r'[^A-Za-z0-9_.+-]', '_', name)}-{step}{suffix}.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing here; the system frees the lock when this process ends, however it ends.

        Raises:
          WorkDirectoryError: if another process holds the lock.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
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
            for folder in made:  # as long as they are empty: nothing was begun
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _holds_foreign_files(self) -> bool:
        ours = {self._lock_file.name, self.config_file.name + ".tmp"}  # what a process leaves that was killed early
        return any(path.name not in ours for path in self.path.iterdir())

    def _check_writable(self) -> None:
        """Writes a nameless file where the folder is, or will be; leaves nothing behind."""
        nearest = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        try:
            with tempfile.TemporaryFile(dir=nearest):
                pass
        except OSError as error:
            raise WorkDirectoryError(f"--workdir={self.path}: cannot be written to: {error.strerror}") from error


def check_is_local(path: str) -> None:
    """Raises WorkDirectoryError if a work directory is an address, such as `gs://bucket/run`, and no folder."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise WorkDirectoryError(
            f"--workdir={path}: must be a folder, for locks, renames and fsync need a file system; train in a local "
            "one and copy it there meanwhile (gsutil -m rsync -r, aws s3 sync, rclone sync)"
        )


class _Record(NamedTuple):
    """What config.json says to this program; the rest of it is for people."""

    config: Config
    class_weights: tuple[float, ...] | None
    classes: Classes


def _with_earlier_choices(values: dict[str, Any], class_weights: Sequence[float] | None) -> dict[str, Any]:
    """The values of a config; those that were not choices yet when it was written are what petseg did then."""
    normalization = "mean" if class_weights is None else "sum"  # without weights, there is no scale to keep
    loss = {"class_weight_normalization": normalization, **values.get("loss", {})}
    return {**values, "loss": loss, "runtime": {"example_order": 1, **values.get("runtime", {})}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the checkout that this code runs from, marked where the tree has changed since."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
