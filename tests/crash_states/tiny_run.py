"""A tiny training run, and what it leaves behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from conftest import events
from PIL import Image
from short_trainings import variables

from petseg.config import Config, command_line
from petseg.runs import checkpoints
from petseg.runs.checkpoint_files import best_record, path_of, step_of

NETWORK = '''"""The smallest network."""
import keras

def build(image_size, num_classes, channels):
    images = keras.Input([*image_size, channels], name="image")
    scaled = keras.layers.Rescaling(1 / 255, name="scaled")(images)
    # Named, because Keras numbers the layers of a process, and tests before this one have made some.
    return keras.Model(images, keras.layers.Conv2D(num_classes, 1, name="logits")(scaled), name="network")
'''
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
        "tensors": [{name: value.tobytes() for name, value in variables(path).items()} for path in paths],
    }
