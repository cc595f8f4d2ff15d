import json
import runpy
import sys
import time

import pytest
from conftest import ROOT, own_lines, run_program
from hypothesis import given, strategies as st

from petseg import config as config_lib
from petseg.config import Config, DataConfig, command_line, options
from petseg.config.__main__ import README, with_tables
from petseg.config.eval_config import EvalConfig
from petseg.errors import ConfigError, PetsegError


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_is_quick_and_lists_every_flag(script):
    run_program(script, "--help")  # the first start also writes bytecode
    start = time.perf_counter()
    result = run_program(script, "--help")
    assert time.perf_counter() - start < 1.5
    assert result.returncode == 0
    config_class = Config if script == "train.py" else EvalConfig
    for _, flag, default, _ in options.rows(config_class):
        shown = default or "''"
        assert f"--{flag}={shown}\n" in result.stdout


WRONG_FLAGS = [
    (["--strategy=foo"], "--strategy=foo", "one of auto, one_device, mirrored"),
    (["--image_size=100"], "--image_size=100", "divisible by 32"),
    (["--image_size=0"], "--image_size=0", "at least 32"),
    (["--epochs=0", "--train_steps=0"], "--epochs=0 and --train_steps=0", "exactly one"),
    (["--epochs=0"], "--epochs=0", "exactly one"),
    (["--class_weights=0,0,0"], "--class_weights=0,0,0", "not all 0"),
    (["--class_weights=1,-1,1"], "--class_weights=1,-1,1", "at least 0"),
    (["--batch_size=many"], "--batch_size=many", "a whole number of at least 1"),
    (["--batch_size=0"], "--batch_size=0", "at least 1"),
    (["--learning_rate=0"], "--learning_rate=0", "above 0"),
    (["--learning_rate=nan"], "--learning_rate=nan", "a number above 0"),
    (["--batch_norm_momentum=1"], "--batch_norm_momentum=1", "below 1"),
    (["--optimizer=adagrad"], "--optimizer=adagrad", "one of adam, adamw, sgd, lion, muon, "),
    (["--loss_normalization=mean"], "--loss_normalization=mean", "one of pixels, weights"),
    (["--input_scaling=raw"], "--input_scaling=raw", "one of unit, symmetric"),
    (["--augment=wild"], "--augment=wild", "one of none, flip"),
    (["--vertical_flip=2"], "--vertical_flip=2", "at most 1"),
    (["--crop_area=17"], "--crop_area=17", "above 0 and at most 16"),
    (["--quarter_turns=0.5", "--image_size=64,96"], "--quarter_turns=0.5: --image_size", "must be a square"),
    (["--crop_focus=0.3"], "--crop_focus=0.3: there are no random crops", "--resize=crop or a --crop_area below 1"),
    (["--crop_focus=0.3", "--crop_area=2"], "--crop_focus=0.3: there are no random crops", "must be 0"),
    (["--crop_size=48"], "--crop_size=48", "divisible by 32"),
    (["--crop_size=64", "--inner_size=96"], "--crop_size=64 and --inner_size=96", "must not be given together"),
    (["--train_encoder=perhaps"], "--train_encoder=perhaps", "true or false"),
    (["--encoder_alpha=0.7"], "--encoder_alpha=0.7", "0.35, 0.5, 0.75, 1, 1.3, 1.4"),
    (["--dataset="], "--dataset=", "a non-empty text"),
    (["--seed=-1"], "--seed=-1", "at least 0"),
    (["--seed=4294967296"], "--seed=4294967296", "at most 4294967295"),
    (["--dataset=huggingface:owner/name"], "--dataset=huggingface:owner/name", "must be the name of a TFDS data set"),
    (["--precision=float8"], "--precision=float8", "one of float32, mixed_float16, mixed_bfloat16"),
    (["--clip_norm=-1"], "--clip_norm=-1", "at least 0"),
    (["--micro_batches=0"], "--micro_batches=0", "at least 1"),
    (["--initial_loss_scale=0.5"], "--initial_loss_scale=0.5", "at least 1"),
    (["--strategy=multi_worker_mirrored"], "--workdir", "that all processes of the cluster share"),
    (["--batchsize=3"], "batchsize", "Unknown command line flag"),
    (["--preset=none"], "--preset=none", "one of best, camvid, fast, quickstart, sprint, tutorial"),
    (["--flagfile=/nowhere.cfg"], "/nowhere.cfg", "flagfile"),
    (["train"], "train", "every argument is a flag"),
]


@pytest.mark.parametrize(("arguments", "named", "must_be"), WRONG_FLAGS)
def test_wrong_flags_say_what_they_got_and_what_they_must_be(arguments, named, must_be):
    with pytest.raises(PetsegError) as caught:
        command_line.parse(["train.py", *arguments], Config)
    message = str(caught.value)
    assert named in message
    assert must_be in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_a_wrong_flag_ends_the_program_before_tensorflow_loads():
    start = time.perf_counter()
    result = run_program("train.py", "--image_size=100")
    assert time.perf_counter() - start < 1.5
    assert result.returncode == 2
    assert own_lines(result.stderr) == [
        "train.py: error: --image_size=100: must be a whole number of at least 32, divisible by 32, or two such "
        "numbers, HEIGHT,WIDTH"
    ]


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_native_windows_is_refused_in_one_line_that_names_wsl2(monkeypatch, capsys, script):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "argv", [script, "--workdir=run"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{script}: error: this is native Windows")
    assert "WSL2" in line


def test_train_steps_alone_switches_the_default_epochs_off():
    schedule = command_line.parse(["train.py", "--train_steps=7"], Config).schedule
    assert (schedule.epochs, schedule.train_steps) == (0, 7)


@pytest.mark.parametrize(
    ("arguments", "epochs", "train_steps"),
    [
        (["--epochs=3", "--train_steps=10"], 0, 10),
        (["--train_steps=10", "--epochs=3"], 3, 0),
        (["--epochs", "3", "-train_steps", "10"], 0, 10),
        (["--epochs=3", "--train_steps=10", "--epochs=4"], 4, 0),
        (["--epochs=3", "--train_steps=0"], 3, 0),  # switched off, it wins nothing
        (["--train_steps=10", "--epochs=0"], 0, 10),
    ],
)
def test_of_epochs_and_train_steps_the_later_one_counts(arguments, epochs, train_steps):
    schedule = command_line.parse(["train.py", *arguments], Config).schedule
    assert (schedule.epochs, schedule.train_steps) == (epochs, train_steps)


def test_a_change_from_python_switches_off_excluded_options():
    in_steps = Config.of(epochs=3).changed(schedule={"train_steps": 10, "log_every": 5})
    assert (in_steps.schedule.epochs, in_steps.schedule.train_steps) == (0, 10)
    assert in_steps.schedule.log_every == 5
    assert in_steps.changed(schedule={"epochs": 3}).schedule.train_steps == 0
    assert in_steps.changed(schedule={"log_every": 6}).schedule.train_steps == 10
    with pytest.raises(ConfigError, match="--epochs=3 and --train_steps=10: exactly one of the two must be above 0"):
        Config().changed(schedule={"epochs": 3, "train_steps": 10})


def test_of_the_flags_about_the_training_of_the_encoder_the_later_one_counts():
    model = command_line.parse(["train.py", "--train_encoder", "--train_encoder_from=none"], Config).model
    assert model.first_trained == "none"
    model = command_line.parse(["train.py", "--train_encoder_from=none", "--train_encoder"], Config).model
    assert model.first_trained == "all"
    model = command_line.parse(["train.py", "--train_encoder_from=stage_4", "--train_encoder"], Config).model
    assert model.first_trained == "stage_4"
    assert Config.of(train_encoder=True).changed(model={"train_encoder_from": "none"}).model.first_trained == "none"


def test_imagenet_weights_are_not_asked_for_where_another_run_gives_the_weights():
    assert Config.of(encoder="tiny", init_from="runs/other").model.init_from == "runs/other"


def test_flags_reach_the_config():
    arguments = ["train.py", "--batch_size=16", "--learning_rate=0.5", "--train_encoder", "--class_weights=2,2,1"]
    config = command_line.parse(arguments, Config)
    assert config.data.batch_size == 16
    assert config.optimizer.learning_rate == 0.5
    assert config.model.train_encoder is True
    assert config.loss.class_weight_values() == (2.0, 2.0, 1.0)


@given(
    batch_size=st.integers(1, 10**6),
    learning_rate=st.floats(1e-9, 1e3),
    epochs=st.integers(1, 10**6),
    split=st.text(min_size=1).filter(lambda text: text.strip() and "@" not in text),
    deterministic=st.booleans(),
)
def test_config_survives_json(batch_size, learning_rate, epochs, split, deterministic):
    values = {
        "data": {"batch_size": batch_size, "train_split": split},
        "optimizer": {"learning_rate": learning_rate},
        "schedule": {"epochs": epochs},
        "runtime": {"deterministic": deterministic},
    }
    config = config_lib.from_dict(values)
    assert config.data.train_split == split
    assert config_lib.from_dict(json.loads(json.dumps(config_lib.to_dict(config)))) == config


@pytest.mark.parametrize("values", [{"nonsense": {}}, {"data": {"batchsize": 3}}, {"data": 3}, []])
def test_a_config_with_unknown_keys_is_refused(values):
    with pytest.raises(ConfigError, match=r"config: (unknown key|got)"):
        config_lib.from_dict(values)


@pytest.mark.parametrize(
    "flags", [{"resize": "crop"}, {"crop_area": 0.5}, {"augment": "standard"}, {"crop_area": 2.0, "crop_area_max": 0.5}]
)
def test_crops_can_be_focused_wherever_there_are_random_crops(flags):
    assert Config.of(crop_focus=0.3, **flags).augmentation.strengths()["crop_focus"] == 0.3


def test_changes_tell_fixed_fields_from_free_ones():
    old = Config()
    new = config_lib.from_dict({"data": {"batch_size": 8}, "schedule": {"epochs": 3}})
    assert config_lib.changes(old, new) == {"batch_size": (64, 8, True), "epochs": (20, 3, False)}


def test_the_readme_of_config_shows_all_flags_as_they_are():
    readme = README.read_text()
    assert with_tables(readme) == readme


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--debug"], True),
        (["--debug=1"], True),
        (["--debug=True"], True),
        (["-debug=t"], True),
        (["--flagfile={file}"], True),
        (["--flagfile={file}", "--nodebug"], False),
        (["--flagfile={file}", "--debug=0"], False),
        (["--debug=false", "--flagfile={file}"], True),
        (["--flagfile=/nowhere.cfg", "--debug=1"], True),
        ([], False),
    ],
)
def test_debug_shows_the_traceback_however_it_is_spelled_and_wherever_it_stands(
    tmp_path, monkeypatch, arguments, shown
):
    file = tmp_path / "flags.cfg"
    file.write_text("# comment\n--debug=1\n")
    arguments = [argument.replace("{file}", str(file)) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "--batch_size=0"])
    with pytest.raises(PetsegError if shown else SystemExit):
        command_line.run(lambda config: None, Config, "")


def test_an_error_is_one_line_whatever_characters_a_path_has(monkeypatch, capsys):
    def fail(config):
        raise PetsegError("a\n\x1b[31mb.png: cannot be read")

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit):
        command_line.run(fail, Config, "")
    assert capsys.readouterr().err == "train.py: error: a\\x0a\\x1b[31mb.png: cannot be read\n"


@pytest.mark.parametrize(
    "values",
    [
        {"pages": "examples"},
        {"dataset": "a.py:f", "pages": "examples"},
        {"dataset": "folder", "image_feature": "photo"},
        {"dataset": "a.py:f", "mask_feature": "labels"},
    ],
)
def test_flags_of_other_kinds_of_data_sets_are_refused(values):
    flag, value = list(values.items())[-1]
    with pytest.raises(ConfigError, match=f"^--{flag}={value}: must "):
        DataConfig(**values)
