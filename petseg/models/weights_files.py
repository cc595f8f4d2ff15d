"""Weights in files of Keras models and of petseg, matched with those of an encoder."""

import functools
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import keras
import numpy as np
import safetensors

Arrays = dict[str, np.ndarray]  # by names such as "block_1/Conv1/kernel", or "block_1/Conv1/0" for its first weight


def matches(encoder: keras.Model, path: str) -> list[np.ndarray | None]:
    """For each weight of an encoder, in order, the values in a file; None where it has none.

    Layers are matched by name, also inside other models; by rank in place of the numbers that Keras counts in a
    process; by order within their class; or, in a packed run, by position: whichever fits most weights.

    Raises:
      OSError, ValueError or KeyError: if the file is damaged or of another kind.
    """
    shapes = [tuple(variable.shape) for variable in encoder.weights]
    found = [
        [next((arrays[name] for name in names if name in arrays), None) for names in ours]
        for arrays in _read(path)
        for ours in _names_in_files(encoder)
    ]
    return max(found, key=functools.partial(_fitting, shapes))


def _fitting(shapes: list[tuple[int, ...]], found: list[np.ndarray | None]) -> int:
    return sum(values is not None and values.shape == shape for values, shape in zip(found, shapes, strict=True))


def _names_in_files(encoder: keras.Model) -> list[list[tuple[str, ...]]]:
    """The names that each weight may have, by four conventions."""
    paths = [variable.path for variable in encoder.weights]
    counts: dict[str, int] = {}
    by_index: list[str] = []
    by_class: list[tuple[str, ...]] = []
    for path in paths:
        layer = path.rpartition("/")[0]
        by_index.append(f"{layer}/{counts.get(layer, 0)}")
        counts[layer] = counts.get(layer, 0) + 1
    for layer in encoder.layers:
        kind = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)
        kind = re.sub(r"([a-z])([A-Z])", r"\1_\2", kind).lower()  # as Keras names groups in HDF5 files
        by_class += [(f"{kind}#{counts.get(kind, 0)}/{index}",) for index in range(len(layer.weights))]
        counts[kind] = counts.get(kind, 0) + 1
    by_position: list[tuple[str, ...]] = [(f"#{index}/{path.rpartition('/')[2]}",) for index, path in enumerate(paths)]
    return [list(zip(paths, by_index, strict=True)), list(zip(_ranked(paths), _ranked(by_index), strict=True)),
            by_class, by_position]  # fmt: skip


def _read(path: str) -> Iterator[Arrays]:
    """The arrays of a file, under names of several conventions."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content: Any = io.BytesIO(archive.read("model.weights.h5"))
    else:
        content = path
    if content is not path or h5py.is_hdf5(path):
        with h5py.File(content) as file:
            conventions = _of_hdf5(file)
    else:
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - has no __iter__
                is_packed = "petseg" in (file.metadata() or {})
        except safetensors.SafetensorError as error:
            raise ValueError(f"no HDF5, .keras or .safetensors file, or a damaged one ({error})") from error
        conventions = [{(_position(name) if is_packed else name.replace(".", "/")): tensors[name] for name in tensors}]
    for arrays in conventions:
        yield _by_suffixes(arrays, list(arrays))
        yield _by_suffixes(arrays, _ranked(list(arrays)))


def _position(name: str) -> str:
    index, _, weight = name.partition("/")
    return f"#{int(index)}/{weight}"


def _of_hdf5(file: Any) -> list[Arrays]:
    """The arrays of a Keras 3 file by layers' names and by classes, or of a Keras 2 file by layers' names."""
    datasets: dict[str, Any] = {}
    file.visititems(lambda path, item: datasets.update({path: item}) if isinstance(item, h5py.Dataset) else None)
    by_name, by_class = {}, {}
    for path, item in datasets.items():
        *groups, index = path.split("/")
        places = ["/".join(groups[: depth + 1]) + "/vars" for depth in range(len(groups))]
        names = [str(file[place].attrs["name"]) for place in places if place in file and "name" in file[place].attrs]
        if groups[-1:] == ["vars"] and not path.startswith("optimizer"):
            by_name["/".join([*names, index])] = item[()]
            by_class["/".join([*(each for each in groups if each not in ("layers", "vars")), index])] = item[()]
    by_order = {}
    for group in (file.get("model_weights", file)).values():
        layers: dict[str, int] = {}
        for name in group.attrs.get("weight_names", ()):
            name = name.decode() if isinstance(name, bytes) else name
            layer = name.rpartition("/")[0]
            by_order[f"{layer}/{layers.get(layer, 0)}"] = group[name][()]
            layers[layer] = layers.get(layer, 0) + 1
    return [by_name, by_class, by_order]


def _ranked(names: Sequence[str]) -> list[str]:
    """Names with ranks instead of layers' numbers: "conv2d_94/0" and "conv2d_97/0" -> "conv2d#0/0" and "conv2d#1/0"."""
    parts = []
    for name in names:
        layer, _, weight = name.rpartition("/")
        base, _, number = layer.rpartition("_")
        parts.append((base, int(number), weight) if base and number.isdecimal() else (layer, 0, weight))
    numbers: dict[str, set[int]] = {}
    for base, rank, _ in parts:
        numbers.setdefault(base, set()).add(rank)
    ranks = {base: {number: rank for rank, number in enumerate(sorted(used))} for base, used in numbers.items()}
    return [f"{base}#{ranks[base][rank]}/{weight}" for base, rank, weight in parts]


def _by_suffixes(arrays: Arrays, names: Sequence[str]) -> Arrays:
    """Arrays under their names and the ends of these, from a layer on; the first of several."""
    found: Arrays = {}
    for name, values in zip(names, arrays.values(), strict=True):
        parts = name.split("/")
        for start in range(max(1, len(parts) - 1)):
            found.setdefault("/".join(parts[start:]), values)
    return found
