import sys

import pytest
from conftest import ROOT

from petseg import programs
from petseg.classes import Classes
from petseg.config import Config, command_line, presets
from petseg.config.eval_config import EvalConfig
from petseg.errors import ConfigError, PetsegError


def parse(*arguments):
    return command_line.parse(["petseg-train", *arguments], Config)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", presets.names())
def test_presets_are_valid_anywhere_and_say_how_to_run_them(elsewhere, name):
    file = ROOT / "petseg" / "presets" / f"{name}.cfg"
    assert parse(f"--preset={name}") == parse(f"--flagfile={file}")
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any(f"python train.py --preset={name}" in line for line in head)
    assert any("mean IoU" in line for line in head)


def test_a_run_without_a_preset_is_that_of_the_tutorial():
    assert parse("--preset=tutorial") == Config()


@pytest.mark.parametrize("preset", [["--preset=best"], ["-preset=best"], ["--preset", "best"]])
def test_later_flags_win_over_those_of_a_preset_and_it_over_earlier_ones(preset):
    assert parse(*preset, "--epochs=3", "--batch_size=2").schedule.epochs == 3
    assert parse("--epochs=3", *preset).schedule.epochs == 10


def test_the_length_of_a_run_in_steps_replaces_the_epochs_of_a_preset_wherever_it_is_given(tmp_path):
    mine = tmp_path / "mine.cfg"
    mine.write_text("--preset=best\n--train_steps=100\n")
    expected = parse("--preset=best", "--epochs=0", "--train_steps=100")
    assert expected.schedule.train_steps == 100
    assert parse("--preset=best", "--train_steps=100") == expected
    assert parse("--preset", "best", "--train_steps", "100") == expected
    assert parse(f"--flagfile={mine}") == expected
    assert Config.preset("best", train_steps=100) == expected
    assert Config.of(preset="best", train_steps=100) == expected
    assert Config.preset("best").changed(schedule={"train_steps": 100}) == expected
    assert parse("--train_steps=100", "--preset=best") == parse("--preset=best")
    assert parse(f"--flagfile={mine}", "--epochs=10") == parse("--preset=best")


def test_one_augmentation_of_a_preset_can_be_switched_off():
    assert parse("--preset=best").augmentation.crop_area == 1
    assert parse("--preset=best", "--crop_area=").augmentation.crop_area is None


def test_a_file_of_flags_may_build_on_a_preset(tmp_path):
    mine = tmp_path / "mine.cfg"
    mine.write_text("# mine\n--preset=best\n--epochs=5\n")
    config = parse(f"--flagfile={mine}", "--learning_rate=0.5")
    assert config == parse("--preset=best", "--epochs=5", "--learning_rate=0.5")


def test_a_preset_is_a_matter_of_training():
    with pytest.raises(PetsegError, match="Unknown command line flag 'preset'"):
        command_line.parse(["petseg-eval", "--workdir=run", "--preset=best"], EvalConfig)


def test_the_classes_of_camvid_are_found_from_any_folder_unless_one_has_its_own(elsewhere):
    data = parse("--preset=camvid").data
    assert len(Classes.read(data.classes_file)) == 11
    (elsewhere / "camvid_classes.json").write_text('["road", "rest"]')
    assert Classes.read(data.classes_file).names == ("road", "rest")


@pytest.mark.parametrize("path", ["none.json", "./camvid_classes.json", "../presets/camvid_classes.json"])
def test_paths_of_class_files_are_resolved(elsewhere, path):
    with pytest.raises(ConfigError, match=r"--classes=.*: cannot be read"):
        Classes.read(parse(f"--classes={path}").data.classes_file)


@pytest.mark.parametrize(
    ("started_as", "shown"),
    [
        ("train.py", "python eval.py"),
        ("/my code/train.py", "python '/my code/eval.py'"),
        ("/venv/bin/petseg-train", "petseg-eval"),
        ("/site-packages/petseg/runs/seeds.py", "petseg-eval"),
        ("/site-packages/ipykernel_launcher.py", "petseg-eval"),
    ],
)
def test_the_next_command_is_shown_as_it_can_be_typed(monkeypatch, started_as, shown):
    monkeypatch.setattr(sys, "argv", [started_as])
    assert command_line.invocation("eval.py") == shown


@pytest.mark.parametrize(("program", "name"), [(programs.train, "petseg-train"), (programs.evaluate, "petseg-eval")])
def test_commands_name_themselves(monkeypatch, capsys, program, name):
    monkeypatch.setattr(sys, "argv", [f"/venv/bin/{name}", "--batch_size=many"])
    with pytest.raises(SystemExit) as stopped:
        program()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"{name}: error: --batch_size=many: must be")
    monkeypatch.setattr(sys, "argv", [f"/venv/bin/{name}", "--help"])
    with pytest.raises(SystemExit) as stopped:
        program()
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: {name} [" in out
    listed = tuple(preset for preset in presets.names() if f"--preset={preset}\n" in out)
    assert listed == (presets.names() if program is programs.train else ())
