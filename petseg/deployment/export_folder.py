"""The output folder of exports: replaces only files that petseg wrote, also if an earlier export was interrupted."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from petseg.errors import ExportError, one_line
from petseg.files import move, process_lock, write_json

CARD = "model_card.json"
WRITTEN = "written"  # key of the card: digests of the files that petseg wrote and may replace
SCRATCH = ".petseg-export"  # folder of unfinished exports
REPLACED = ".before"  # suffix of folders in it that were moved out of the way

Digests = dict[str, list[str]]  # by name of a file or folder: of each content that petseg may have written


def check_replaceable(folder: Path, names: Iterable[str]) -> None:
    """Raises ExportError if an export would replace a file that petseg did not write or that was changed."""
    if os.path.lexists(folder / CARD) and _card(folder) is None:
        raise ExportError(
            f"{folder / CARD}: is not a model card of petseg; move it away or choose another --output_dir"
        )
    written = _written(folder)
    for name in names:
        _check_own(folder / name, written)


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A new folder inside of `folder`, for one export at a time; what an interrupted one left there is deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / SCRATCH
    with process_lock(folder / f"{SCRATCH}.lock", f"exports to {folder}"):
        _clear(scratch)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            _clear(scratch)


def put_into_place(scratch: Path, names: Mapping[str, str], card: dict[str, Any]) -> None:
    """Moves finished exports out of their scratch folder, replacing earlier ones, and writes the model card.

    Args:
      names: name of the file or folder by format.
      card: the model card; formats that cannot be moved leave its `formats`, and their reasons join its `failures`.
    """
    folder = scratch.parent
    written, new = _written(folder), {name: [digest(scratch / name)] for name in names.values()}
    # If this is interrupted, the next export may replace the old files as well as the new ones.
    either = {name: [*written.get(name, []), *new.get(name, [])] for name in written | new}
    write_json(folder / CARD, {**card, WRITTEN: either})
    for format, name in names.items():
        try:
            _check_own(folder / name, written)  # again: making an export takes a while
            if (folder / name).is_dir():  # os.replace cannot replace a folder
                (folder / name).rename(scratch / f"{name}{REPLACED}")
            move(scratch / name, folder / name)
        except (OSError, ExportError) as error:
            card["failures"][format] = f"{folder / name}: {one_line(error)}"
            del card["formats"][format], new[name]
    write_json(folder / CARD, {**card, WRITTEN: written | new})


def _clear(scratch: Path) -> None:
    """Deletes a scratch folder; a folder whose replacement did not come into place goes back."""
    for before in scratch.glob(f"*{REPLACED}"):
        path = scratch.parent / before.name.removesuffix(REPLACED)
        if not os.path.lexists(path):
            before.rename(path)
    shutil.rmtree(scratch, ignore_errors=True)


def digest(path: Path) -> str:
    """A digest of a file's content, or of the names and contents of a folder's files."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.relative_to(path)}\0".encode())
        found.update(hashlib.sha256(file.read_bytes() if file.is_file() else b"").digest())
    return found.hexdigest()


def _check_own(path: Path, written: Digests) -> None:
    if os.path.lexists(path) and (path.name not in written or digest(path) not in written[path.name]):
        raise ExportError(
            f"{path}: exists and petseg did not write it, or it was changed since; move it away or choose "
            "another --output_dir"
        )


def _card(folder: Path) -> dict[str, Any] | None:
    """The model card of earlier exports to a folder, or None."""
    try:
        card = json.loads((folder / CARD).read_text())
    except (OSError, ValueError):
        return None
    return card if isinstance(card, dict) and {"formats", "compared_on", "failures"} <= set(card) else None


def _written(folder: Path) -> Digests:
    """The digests of the files that earlier exports wrote to a folder and that still exist."""
    digests = (_card(folder) or {}).get(WRITTEN)
    digests = digests if isinstance(digests, dict) else {}
    return {
        name: [known] if isinstance(known, str) else known  # a string in cards of earlier versions
        for name, known in digests.items()
        if os.path.lexists(folder / name)
    }
