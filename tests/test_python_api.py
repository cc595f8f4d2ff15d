"""petseg from Python: what `import petseg` gives, and at what price."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import petseg
from petseg.errors import PetsegError

PRICE = """
import sys, time
start = time.process_time()
import petseg
seconds = time.process_time() - start
config = petseg.Config.preset("quickstart", epochs=2)
assert not {"tensorflow", "keras", "matplotlib", "tensorflow_datasets"} & set(sys.modules), sorted(sys.modules)
print(seconds)
"""


def test_the_import_and_a_config_need_no_tensorflow():
    result = subprocess.run([sys.executable, "-c", PRICE], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 0.2  # of processor time


def test_public_names_exist():
    assert set(petseg.__all__) <= set(dir(petseg))
    assert all(getattr(petseg, name) for name in petseg.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        petseg.fit  # noqa: B018


def halved_weights(labels, logits, weights):
    return weights / 2


def test_a_config_is_made_from_the_names_of_flags():
    config = petseg.Config.of(
        dataset="synthetic_pets", epochs=3, train_encoder=True, image_size=(64, 96), data_dir=Path("x")
    )
    assert (config.data.dataset, config.schedule.epochs, config.model.train_encoder) == ("synthetic_pets", 3, True)
    assert (config.data.size, config.data.data_dir) == ((64, 96), "x")
    assert petseg.Config.of(train_steps=7).schedule.epochs == 0  # as on the command line
    assert petseg.Config.of(loss=halved_weights).loss.loss == f"{__name__}:halved_weights"


def test_a_preset_is_a_config_whose_values_can_be_changed():
    config = petseg.Config.preset("fast", epochs=5)
    assert config.schedule.epochs == 5
    assert config == petseg.Config.of(flagfile=ROOT / "petseg/presets/fast.cfg", epochs=5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: petseg.Config.of(epohcs=3), "Unknown command line flag 'epohcs'.*epochs"),
        (lambda: petseg.Config.of(epochs=-1), r"epochs=-1: must be a whole number of at least 0"),
        (lambda: petseg.Config.of(epochs="many"), "epochs=many: must be a whole number"),
        (lambda: petseg.Config.of(train_encoder="perhaps"), "train_encoder=perhaps: must be true or false"),
        (
            lambda: petseg.Config.of(loss=lambda *_: 0),
            "--loss=.*lambda.*must be a function or class at the top level of a mod",
        ),
        (lambda: petseg.Config("quickstart"), "Config: got 'quickstart' for data; make it with Config.of"),
        (lambda: petseg.train("quickstart"), "config: got 'quickstart'; must be a petseg.Config, such as"),
        (lambda: petseg.Config.preset("bets"), "bets.*(best.*fast.*quickstart|must be one of)"),
    ],
)
def test_wrong_values_are_refused_with_the_text_of_the_command_line(make, message):
    with pytest.raises(PetsegError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
