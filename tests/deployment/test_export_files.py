"""What an export may replace: its own earlier files, and these only by what agrees with the model."""

import functools
import json
import os
import shutil
from unittest import mock

import keras
import numpy as np
import pytest

from petseg.deployment import export, export_folder
from petseg.errors import ExportError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


@functools.cache
def model(seed):
    keras.utils.set_random_seed(seed)
    images = keras.Input([32, 32, 3])
    return keras.Model(images, keras.layers.Conv2D(3, 3, padding="same")(keras.layers.Rescaling(1 / 255)(images)))


def write(folder, *formats, seed=0):
    return export.export(model(seed), formats, str(folder), IMAGES, calibration=None, card={})


def contents(folder):
    """Bytes by path; None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def read(folder):
    return np.asarray(keras.models.load_model(folder / "model.keras")(IMAGES)["probabilities"])


FOREIGN = {
    "a folder of that name": lambda folder: (folder / "saved_model").mkdir(),
    "a file in a folder of that name": lambda folder: [
        (folder / "saved_model").mkdir(),
        (folder / "saved_model" / "important.txt").write_text("important"),
    ],
    "a file of that name": lambda folder: (folder / "model.keras").write_text("the user's own"),
    "a link of that name": lambda folder: (folder / "model.keras").symlink_to("elsewhere"),
    "a model card": lambda folder: (folder / "model_card.json").write_text('{"model": "of somebody else"}'),
    "a text that is no card": lambda folder: (folder / "model_card.json").write_text("# My model"),
    "a file in an export": lambda folder: [
        write(folder, "saved_model"),
        (folder / "saved_model" / "important.txt").write_text("important"),
    ],
    "a changed export": lambda folder: [
        write(folder, "keras"),
        (folder / "model.keras").write_text("the user's own"),
    ],
    "an export without its card": lambda folder: [write(folder, "keras"), (folder / "model_card.json").unlink()],
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_files_stay_and_nothing_is_written(tmp_path, what):
    FOREIGN[what](tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ExportError, match=r"move it away or choose another --output_dir$") as caught:
        write(tmp_path, "h5", "saved_model", "keras", seed=1)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_a_file_that_appears_during_an_export_stays(tmp_path, monkeypatch):
    load = keras.models.load_model

    def load_slowly(path, **options):
        (tmp_path / "model.keras").write_text("the user's own")
        return load(path, **options)

    monkeypatch.setattr(keras.models, "load_model", load_slowly)
    with pytest.raises(ExportError, match=r"--export=keras: .*model\.keras"):
        write(tmp_path, "keras")
    assert (tmp_path / "model.keras").read_text() == "the user's own"


def test_own_exports_are_replaced_also_after_others_were_written_beside_them(tmp_path):
    (tmp_path / "notes.txt").write_text("beside")
    write(tmp_path, "keras", "saved_model")
    write(tmp_path, "h5", seed=1)
    assert set(json.loads((tmp_path / "model_card.json").read_text())["formats"]) == {"h5"}
    before = read(tmp_path)
    write(tmp_path, "saved_model", "keras", seed=2)
    assert np.abs(read(tmp_path) - before).max() > 0.01
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"notes.txt", "model.keras", "model.h5", "saved_model", "model_card.json"}


def test_a_good_export_stays_where_a_new_one_disagrees(tmp_path, monkeypatch):
    write(tmp_path, "keras")
    before, load = contents(tmp_path), keras.models.load_model

    def load_something_else(path, **options):
        loaded = load(path, **options)
        if str(path).endswith(".keras"):
            loaded.set_weights([-weight for weight in loaded.get_weights()])
        return loaded

    with monkeypatch.context() as patched:
        patched.setattr(keras.models, "load_model", load_something_else)
        with pytest.raises(ExportError, match=rf"--export=keras: {tmp_path}/model\.keras agrees .* must on 99\.9%"):
            write(tmp_path, "keras", "h5", seed=1)
    after = contents(tmp_path)
    assert after["model.keras"] == before["model.keras"]
    card = json.loads(after["model_card.json"])
    assert (set(card["formats"]), set(card["failures"])) == ({"h5"}, {"keras"})
    write(tmp_path, "keras", seed=1)  # both are petseg's own


def test_an_export_is_on_the_disk_before_it_takes_the_place_of_an_earlier_one(tmp_path, disk_calls):
    write(tmp_path, "keras", "saved_model")
    for name in ("model.keras", "saved_model"):
        moved = disk_calls.index(("replace", str(tmp_path / name)))
        made = [path for call, path in disk_calls[:moved] if call == "fsync" and "/.petseg-export/" in path]
        assert any(path.endswith(f"/{name}") for path in made), name
        assert disk_calls[moved + 1] == ("fsync", str(tmp_path))
    assert any(path.endswith("/variables/variables.index") for call, path in disk_calls if call == "fsync")


class Format:
    """An export format that writes random bytes, to a file or into a folder."""

    any_size, batch_size, packages, least_agreement = False, None, {}, 1.0

    def __init__(self, file):
        self.file = file

    def write(self, layer, path, context):
        self.layer = layer
        if self.file == "saved_model":
            path.mkdir()
        (path / "weights" if path.is_dir() else path).write_bytes(os.urandom(8))

    def read(self, path):
        return self.layer


def test_an_export_that_was_interrupted_anywhere_is_replaced_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "FORMATS", {name: Format(name) for name in ("saved_model", "keras")})
    folder, states = tmp_path / "exports", {}

    def record():
        state = tmp_path / f"state-{len(states)}"
        if states.setdefault(str(sorted(contents(folder).items())), state) == state:
            shutil.copytree(folder, state)

    def recording(call):
        def recorded(*arguments):
            record()
            call(*arguments)
            record()

        return recorded

    with monkeypatch.context() as patched:
        for name in ("replace", "rename"):
            patched.setattr(os, name, recording(getattr(os, name)))
        write(folder, "keras", "saved_model")
        write(folder, "keras", "saved_model")
    assert len(states) >= 8
    for state in states.values():
        write(state, "keras", "saved_model")
        assert {path.name for path in state.iterdir()} == {"saved_model", "keras", "model_card.json"}
        (state / "keras").write_text("the user's own")
        with pytest.raises(ExportError, match="move it away"):
            write(state, "keras")


def test_a_folder_whose_replacement_does_not_come_into_place_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "FORMATS", {name: Format(name) for name in ("saved_model", "keras")})
    write(tmp_path, "saved_model")
    saved = contents(tmp_path / "saved_model")
    full = mock.patch.object(export_folder, "move", side_effect=OSError("no space"))
    with full, pytest.raises(ExportError, match="no space"):
        write(tmp_path, "saved_model")
    assert contents(tmp_path / "saved_model") == saved
    (tmp_path / ".petseg-export").mkdir()  # as a power cut between the two moves leaves it
    (tmp_path / "saved_model").rename(tmp_path / ".petseg-export" / "saved_model.before")
    write(tmp_path, "keras")
    assert contents(tmp_path / "saved_model") == saved
