"""Configs as dictionaries and tables, upgrades of earlier formats, and differences between configs."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from petseg import custom_code
from petseg.config import folds
from petseg.config.options import SCORING, TRAINING, groups
from petseg.config.train_config import Config
from petseg.errors import ConfigError

CONFIG_FORMAT = 3
# Fields whose default for "empty" changed: the value in new runs, by group. A run keeps the value that it began with.
KEPT: dict[str, dict[str, Any]] = {"loss": {"class_weight_normalization": "mean"}, "runtime": {"example_order": 2}}

# Fields of the data that a run resolves from its images: the value that means "not resolved".
RESOLVED = {"channels": 0, "image_dtype": "auto", "intensity_range": "auto"}


def _fields() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """All fields of a config, with the name of the group of each."""
    return ((name, field) for name, group in groups(Config).items() for field in dataclasses.fields(group))


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """The config as nested dictionaries of JSON values."""
    return dataclasses.asdict(config)


def fingerprint(config: Config) -> int:
    """A checksum of the config without machine-dependent paths, to compare the processes of a cluster."""
    values = to_dict(config)
    del values["data"]["data_dir"], values["model"]["encoder_weights"], values["model"]["init_from"]
    del values["data"]["cache_dir"], values["data"]["classes"], values["runtime"]["workdir"]
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def from_dict(values: Mapping[str, Mapping[str, Any]]) -> Config:
    """The inverse of `to_dict`. Fields that are missing have their defaults.

    Raises ConfigError if a key is unknown or a value invalid.
    """
    known = groups(Config)
    _refuse_unknown(values, known)
    for name, group in known.items():
        _refuse_unknown(values.get(name, {}), [field.name for field in dataclasses.fields(group)])
    augmentation = values.get("augmentation", {})
    # In earlier versions -1 meant "as --augment says".
    augmentation = {name: None if value == -1.0 else value for name, value in augmentation.items()}
    values = {**values, "augmentation": augmentation, "data": _upgraded(values.get("data", {}))}
    return Config(**{name: group(**values.get(name, {})) for name, group in known.items()})  # type: ignore[arg-type]


def _upgraded(data: Mapping[str, Any]) -> dict[str, Any]:
    """Upgrades the data group of earlier versions, where a size was a number and bad examples could be skipped."""
    data = {name: str(value) if name == "image_size" else value for name, value in data.items()}
    if data.get("on_bad_example") == "skip":
        data["on_bad_example"] = "ignore"
    return data


def _refuse_unknown(values: Any, known: Sequence[str] | Mapping[str, Any]) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"config: got {values!r} where an object with {', '.join(known)} belongs")
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f"config: unknown key {unknown[0]!r}; known are {', '.join(known)}")


def with_run_defaults(config: Config, run: Config | None) -> Config:
    """Fills in what flags leave open: `KEPT` fields as in the run, else the latest; `RESOLVED` ones as in the run."""
    for group, values in KEPT.items():
        given, before = getattr(config, group), None if run is None else getattr(run, group)
        values = {name: getattr(before, name, None) or latest for name, latest in values.items()}
        missing = {name: value for name, value in values.items() if getattr(given, name) is None}
        config = config.changed(**{group: missing})
    if run is not None:
        unset = [name for name, value in RESOLVED.items() if getattr(config.data, name) == value]
        config = config.changed(data={name: getattr(run.data, name) for name in unset})
    return config


def code_references(config: Config, where: Sequence[str] = (SCORING, TRAINING)) -> dict[str, str]:
    """The flags whose values name user code, with these values.

    Args:
      where: which code: SCORING for code that also runs when the run is used, TRAINING for code that only trains.
    """
    return {
        field.name: value
        for name, field in _fields()
        if field.metadata["allowed"].code in where
        and custom_code.is_reference(value := getattr(getattr(config, name), field.name))
    }


def code_hashes(config: Config) -> dict[str, str]:
    """The SHA-256 of the code of each of `code_references`, as its file is now."""
    return {flag: custom_code.fingerprint(flag, reference) for flag, reference in code_references(config).items()}


def with_code(config: Config, code: Mapping[str, Callable[..., Any]]) -> Config:
    """The config with functions or classes as the values of the flags that may name code.

    Raises ConfigError if a flag takes no code, or a function is not at the top level of a module.
    """
    group_of = {field.name: name for name, field in _fields() if field.metadata["allowed"].code}
    for flag, function in code.items():
        if flag not in group_of:
            raise ConfigError(f"{flag}={function!r}: must be one of {', '.join(group_of)}, which take code")
        config = config.changed(**{group_of[flag]: {flag: custom_code.reference_to(flag, function)}})
    return config


def without_code(config: Config) -> Config:
    """The config with the defaults of flags that name user code."""
    names = code_references(config)
    for name, field in _fields():
        if field.name in names:
            config = config.changed(**{name: {field.name: field.default}})
    return config


def changes(old: Config, new: Config) -> dict[str, tuple[Any, Any, bool]]:
    """The fields that differ: name -> (old value, new value, whether resuming refuses a change)."""
    found = {}
    for name, field in _fields():
        before, after = (getattr(getattr(config, name), field.name) for config in (old, new))
        if before != after:
            found[field.name] = (before, after, field.metadata["resume"] == "fixed")
    return found


def hyperparameters(config: Config) -> dict[str, bool | int | float | str]:
    """The flags that may influence scores, with their values, for TensorBoard's HParams."""
    groups_of_interest = (
        config.data, config.augmentation, config.model, config.loss, config.optimizer, config.compute, config.extension
    )  # fmt: skip
    values = {name: value for group in groups_of_interest for name, value in dataclasses.asdict(group).items()}
    values |= {
        "epochs": config.schedule.epochs,
        "train_steps": config.schedule.train_steps,
        "patience": config.schedule.patience,
        "seed": config.runtime.seed,
    }
    for flag in ("train_split", "eval_split"):
        fold = folds.parse(values[flag])
        values[flag] = fold.base if fold else values[flag]  # runs of all folds are one recipe
    for where in ("data_dir", "classes", "image_files", "mask_files", "cache", "cache_dir", "data_service"):
        del values[where]
    return {name: "none" if value in ("", None) else value for name, value in values.items()}


def markdown_of(config: Config) -> str:
    """The values of a config as a Markdown table."""
    lines = ["| flag | value |", "| --- | --- |"]
    for group in to_dict(config).values():
        lines += [f"| `--{flag}` | {'empty' if value == '' else f'`{value}`'} |" for flag, value in group.items()]
    return "\n".join(lines)
