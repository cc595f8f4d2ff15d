"""The flags of eval.py."""

import pytest

from petseg.config import DataConfig, ScheduleConfig
from petseg.config.eval_config import ScoreConfig
from petseg.errors import ConfigError

STRETCH, CROP = DataConfig(image_size="64,96"), DataConfig(image_size="64,96", resize="crop")


def native(tile):
    return ScoreConfig(workdir="run", resolution="native", tile=tile)


def test_tiles_must_be_requested_except_for_cropped_runs():
    assert native("").tile_size(STRETCH) is None
    assert native("0").tile_size(STRETCH) is None
    assert native("512").tile_size(STRETCH) == (512, 512)
    assert native("48,500").tile_size(STRETCH) == (48, 500)
    assert native("").tile_size(CROP) == (64, 96)
    assert native("48,96").tile_size(CROP) == (48, 96)


@pytest.mark.parametrize("tile", ["-1", "31", "64,31", "64,", "64x64", "large"])
def test_a_size_that_no_tile_has(tile):
    with pytest.raises(ConfigError, match=f"^--tile={tile}: must be a whole number of at least 32, or two"):
        native(tile)


@pytest.mark.parametrize("tile", ["0", "96", "32,128"])
def test_too_large_tiles_and_none_are_refused_for_cropped_runs(tile):
    with pytest.raises(ConfigError, match=f"^--tile={tile}: .* at most its --image_size=64,96, and not 0"):
        native(tile).tile_size(CROP)


def test_tiles_are_of_no_use_at_the_models_resolution():
    with pytest.raises(ConfigError, match=r"^--tile=64: must come with --predict or --resolution=native"):
        ScoreConfig(workdir="run", tile="64")
    ScoreConfig(workdir="run", tile="64", predict="*.jpg", output_dir="out")


def test_flags_of_scores_are_refused_with_predict():
    for name, value in (("csv", "x.csv"), ("split", "test"), ("resolution", "native"), ("eval_examples", 3)):
        with pytest.raises(ConfigError, match=f"^--{name}={value}: must come without --predict$"):
            ScoreConfig(workdir="run", predict="*.jpg", **{name: value})


def test_flags_of_scores_are_refused_with_export():
    for name, value in (("csv", "x.csv"), ("resolution", "native"), ("eval_examples", 3), ("flip_tta", True)):
        with pytest.raises(ConfigError, match=f"^--{name}={value}: must come without --export, where it has no effect"):
            ScoreConfig(workdir="run", export="onnx", output_dir="out", **{name: value})
    ScoreConfig(workdir="run", export="onnx", output_dir="out", split="val")  # whose images are compared


def test_prediction_flags_are_refused_without_predict():
    assert ScoreConfig(workdir="run", predict="*.jpg").prediction_dir == "predictions"
    assert ScoreConfig(workdir="run", predict="*.jpg", output_dir="out").prediction_dir == "out"
    for name, value in (
        ("output_dir", "out"),
        ("runtime", "onnx"),
        ("cutout", True),
        ("skip_existing", True),
        ("probabilities", "npz"),
    ):
        with pytest.raises(ConfigError, match=f"^--{name}={value}: must come with --predict$"):
            ScoreConfig(workdir="run", **{name: value})
    with pytest.raises(ConfigError, match="--export must come with --output_dir, and without --predict"):
        ScoreConfig(workdir="run", export="onnx")
    with pytest.raises(ConfigError, match=r"^--threshold=0.3: must be 0 with --export"):
        ScoreConfig(workdir="run", export="onnx", output_dir="out", threshold=0.3)
    with pytest.raises(ConfigError, match=r"^--runtime=tflite: must be one of auto, tensorflow, onnx"):
        ScoreConfig(workdir="run", predict="*.jpg", runtime="tflite")


def test_a_sample_has_no_negative_number_of_examples():
    for make in (lambda: ScheduleConfig(eval_examples=-1), lambda: ScoreConfig(workdir="run", eval_examples=-1)):
        with pytest.raises(ConfigError, match=r"^--eval_examples=-1: must be a whole number of at least 0"):
            make()
