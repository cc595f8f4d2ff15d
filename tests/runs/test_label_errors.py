"""Likely label errors, as `python -m petseg.data.check --against` lists them."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from petseg.config import Config, DataConfig
from petseg.data import check
from petseg.data.check import CheckConfig, CheckOptions
from petseg.errors import ConfigError
from petseg.runs import train

WRONG, COUNT, SIZE = (3, 10), 16, 32


def squares(root, wrong=()):
    """A folder of bright squares on dark ground; `wrong` masks have no square."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    for i in range(COUNT):
        mask = np.zeros([SIZE, SIZE], np.uint8)
        top, left = rng.integers(0, SIZE // 2, 2)
        mask[top : top + 16, left : left + 16] = 1
        image = np.where(mask, 220, 30)[..., None] + rng.integers(0, 20, [SIZE, SIZE, 3])
        Image.fromarray(image.astype(np.uint8)).save(root / f"images/train/{i:02}.png")
        Image.fromarray(mask * np.uint8(i not in wrong)).save(root / f"masks/train/{i:02}.png")
    (root / "classes.json").write_text('{"classes": ["ground", "square"]}')
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was trained on correct masks."""
    folder = squares(tmp_path_factory.mktemp("data") / "squares")
    workdir = tmp_path_factory.mktemp("runs") / "run"
    config = Config.of(
        dataset="folder", data_dir=str(folder), eval_split="train", image_size=SIZE, encoder="tiny",
        encoder_weights="none", train_encoder=True, decoder="light", batch_size=8, train_steps=40,
        learning_rate=0.003, augment="none", workdir=str(workdir), eval_every=40,
    )  # fmt: skip
    train.train(config)
    return workdir


@pytest.mark.slow
def test_wrong_masks_come_first_with_both_classes(run, tmp_path, capsys):
    folder = squares(tmp_path / "squares", WRONG)
    options = CheckOptions(output_dir=str(tmp_path), against=str(run), disputed=4, overlays=0)
    check.main(CheckConfig(DataConfig(dataset="folder", data_dir=str(folder), eval_split="train"), options))
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if "likely label errors" in line)
    assert {line.split()[0] for line in lines[at + 1 : at + 3]} == {f"images/train/{i:02}.png:" for i in WRONG}
    assert all("square instead of ground" in line for line in lines[at + 1 : at + 3])
    assert float(lines[at + 1].split()[1].rstrip("%")) == pytest.approx(25, abs=6)
    assert Image.open(tmp_path / "squares-disputed.jpg").width > 5 * SIZE


@pytest.mark.slow
def test_a_run_of_other_classes_is_refused(run, tmp_path):
    folder = squares(tmp_path / "squares")
    classes = tmp_path / "others.json"
    classes.write_text('{"classes": ["land", "water"]}')
    data = DataConfig(dataset="folder", data_dir=str(folder), classes=str(classes), eval_split="train")
    options = CheckOptions(output_dir=str(tmp_path), against=str(run), overlays=0)
    with pytest.raises(ConfigError, match=r"--against=.*: its classes are ground, square; must be .* land, water$"):
        check.main(CheckConfig(data, options))
    with pytest.raises(Exception, match="nowhere"):
        check.main(CheckConfig(dataclasses.replace(data), dataclasses.replace(options, against="nowhere/at/all")))
