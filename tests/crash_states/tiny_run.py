"""A tiny training run whose network is built once, and what it leaves behind."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf
import white_figures
from conftest import events
from PIL import Image

from petseg.config import Config, command_line
from petseg.reporting import pictures
from petseg.runs import building, checkpoints, setup, starting_point
from petseg.runs.checkpoint_files import best_record, path_of, step_of
from petseg.runtime import process_setup

NETWORK = '''"""The smallest network."""
import keras

def build(image_size, num_classes, channels):
    images = keras.Input([*image_size, channels], name="image")
    scaled = keras.layers.Rescaling(1 / 255, name="scaled")(images)
    # Named, because Keras numbers the layers of a process, and tests before this one have made some.
    return keras.Model(images, keras.layers.Conv2D(num_classes, 1, name="logits")(scaled), name="network")
'''
FIGURES = ("prediction_sheet", "training_batch", "training_curves", "confusion_matrix")
OF_THE_MACHINE = ("speed/", "time_share/", "memory/")


def write_inputs(folder: Path) -> None:
    """Writes the data set, a folder of 16 pictures and masks, and the network."""
    rng = np.random.default_rng(0)
    for kind, shape in (("images", (16, 16, 3)), ("masks", (16, 16))):
        (folder / "data" / kind).mkdir(parents=True)
        for i in range(16):
            pixels = rng.integers(0, 256 if kind == "images" else 3, shape, np.uint8)
            Image.fromarray(pixels).save(folder / "data" / kind / f"{i}.png")
    (folder / "network.py").write_text(NETWORK)


def config(inputs: Path, root: Path, *flags: str) -> Config:
    """Six steps in `root / "run"`, with all caches in `root / "cache"`."""
    return command_line.parse(
        ["", "--dataset=folder", f"--data_dir={inputs}/data", f"--cache_dir={root}/cache", "--cache=disk",
         f"--workdir={root}/run", "--image_size=32", "--batch_size=4", f"--network={inputs}/network.py:build",
         "--strategy=one_device", "--deterministic", "--learning_rate=0.05", "--quiet", "--train_steps=6",
         "--summary_every=1", "--eval_every=3", "--eval_at_start", "--checkpoint_every=2", "--keep_checkpoints=2",
         *flags],
        Config,
    )  # fmt: skip


@contextlib.contextmanager
def built_once(folder: Path) -> Iterator[None]:
    """Later runs of the same config reuse the network, compiled step and evaluator of the first; they begin alike."""
    made, initial = {}, str(folder / "initial")

    def once(function):
        def first(*arguments, **options):
            if function not in made:
                made[function] = function(*arguments, **options)
            return made[function]

        return first

    build_trainer, build_evaluator = once(building.build_trainer), once(building.build_evaluator)

    def trainer(*arguments):
        found = build_trainer(*arguments)
        state = tf.train.Checkpoint(**found.state())
        found.pop_measurements()
        if Path(f"{initial}.index").exists():
            state.read(initial).assert_consumed()
        else:
            state.write(initial)
        return found

    def evaluator(config, strategy, model, examples, *rest):
        found = build_evaluator(config, strategy, model, examples, *rest)
        found._examples = examples  # whose cache may have been written again
        return found

    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in (
            (starting_point, "build_initial_model", once(starting_point.build_initial_model)),
            (building, "build_trainer", trainer),
            (building, "build_evaluator", evaluator),
            (setup, "StopRequests", once(setup.StopRequests)),
            (process_setup, "set_up_runtime", once(process_setup.set_up_runtime)),
            (pictures, "to_array", white_figures.to_array),
            *((pictures, name, once(getattr(pictures, name))) for name in FIGURES),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def outcome(run: Path) -> dict[str, Any]:
    """Everything that a run has written, without times."""
    rows = (run / "metrics.csv").read_text().splitlines()
    paths = [checkpoints.newest_intact(run / "checkpoints"), path_of(run / "best", best_record(run / "best")["step"])]
    return {
        "rows": [row for row in rows if not any(tag in row for tag in OF_THE_MACHINE)],
        "results": {path.name: path.read_text() for path in (run / "results").glob("*.json")},
        "events": {name: events(run / name) for name in ("train", "eval", "final")},
        "best": json.loads((run / "best" / "best.json").read_text()),
        "steps": [step_of(path) for path in paths],
        "tensors": [_tensors(path) for path in paths],
    }


def _tensors(path: str) -> dict[str, bytes]:
    reader = tf.train.load_checkpoint(path)
    # Without the graph of its objects, which names variables by how many this process had before.
    names = reader.get_variable_to_shape_map().keys() - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    return {name: np.asarray(reader.get_tensor(name)).tobytes() for name in names}
