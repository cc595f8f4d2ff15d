"""Files of class probabilities, and masks by a threshold."""

import numpy as np
import pytest
from PIL import Image

from petseg.classes import PETS, Classes
from petseg.deployment import probability_files, segmentation
from petseg.deployment.output_files import Outputs, is_own
from petseg.deployment.probability_files import SpooledRows
from petseg.deployment.segmentation import Segmentation
from petseg.errors import ConfigError

SHAPE = (45, 60)
IMAGE = np.zeros((*SHAPE, 3), np.uint8)


def softmax(count):
    values = np.exp(np.random.default_rng(0).normal(size=(*SHAPE, count)))
    return (values / values.sum(-1, keepdims=True)).astype(np.float32)


def in_rows(probabilities, calls):
    """A function that computes the probabilities by seven rows at a time, and counts its calls."""

    def rows():
        calls.append(1)
        yield from (probabilities[top : top + 7] for top in range(0, SHAPE[0], 7))

    return rows


def test_files_hold_the_probabilities_of_each_class(tmp_path):
    probabilities = softmax(3)
    found = Segmentation(IMAGE, probabilities, PETS)
    (file,) = found.save_probabilities(tmp_path / "cat")
    assert file == tmp_path / "cat.probabilities.npz"
    with np.load(file) as content:
        np.testing.assert_array_equal(content["probabilities"], probabilities)
        assert content["probabilities"].dtype == np.float32
        assert content["classes"].tolist() == list(PETS.names)
    files = found.save_probabilities(str(tmp_path / "cat"), "png")
    assert [each.name for each in files] == [f"cat.probability.{name}.png" for name in PETS.names]
    for i, each in enumerate(files):
        with Image.open(each) as picture:
            assert picture.mode == "L"
            np.testing.assert_allclose(np.asarray(picture) / 255, probabilities[..., i], atol=0.5 / 255 + 1e-6)
    with pytest.raises(ConfigError, match=r"^probabilities: got 'tif'; must be one of png, npz$"):
        found.save_probabilities(tmp_path / "cat", "tif")


def test_large_probabilities_are_written_by_rows_and_computed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(segmentation, "MAX_KEPT_BYTES", 1000)
    monkeypatch.setattr(probability_files, "MAX_PLANES_BYTES", SHAPE[0] * SHAPE[1])
    probabilities, calls = softmax(3), []
    kept = Segmentation(IMAGE, probabilities, PETS)
    large = Segmentation(IMAGE, SpooledRows(in_rows(probabilities, calls), str(tmp_path)), PETS)
    for format in ("png", "npz"):
        for one, other in zip(
            large.save_probabilities(tmp_path / "large", format),
            kept.save_probabilities(tmp_path / "kept", format),
            strict=True,
        ):
            if format == "png":
                np.testing.assert_array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(other)))
            else:
                np.testing.assert_array_equal(np.load(one)["probabilities"], np.load(other)["probabilities"])
    np.testing.assert_array_equal(large.probabilities, probabilities)
    assert len(calls) == 1
    assert not [file for file in tmp_path.iterdir() if "probabilit" not in file.name]  # the temporary file has no name


def test_outputs_with_probabilities_are_recognised_until_they_are_changed(tmp_path):
    found = Segmentation(IMAGE, softmax(3), PETS)
    for format, count in (("png", 5), ("npz", 3)):
        outputs = Outputs(PETS, probabilities=format)
        outputs.write(tmp_path / format / "cat", found)
        files = list((tmp_path / format).iterdir())
        assert {file.name for file in files} == {f"cat{ending}" for ending in outputs.endings()}
        assert len(files) == count
        assert all(map(is_own, files))
    file = tmp_path / "npz" / "cat.probabilities.npz"
    np.savez_compressed(file, **np.load(file))
    assert not is_own(file)


ROAD = Classes.from_dict(["background", "road"])


@pytest.mark.parametrize("classes", [ROAD, Classes.from_dict([{"name": "road", "foreground": 1}, "rest"])])
def test_a_threshold_decides_between_two_classes(classes):
    probabilities, target = softmax(2), classes.binary_foreground()
    for threshold in (0.3, 0.5, 0.9):
        found = Segmentation(IMAGE, probabilities, classes, threshold=threshold)
        is_target = probabilities[..., target] >= threshold
        np.testing.assert_array_equal(found.mask == target, is_target)
        np.testing.assert_allclose(
            found.confidence, np.take_along_axis(probabilities, found.mask[..., None], -1)[..., 0], atol=1e-3
        )
        if threshold == 0.5:
            np.testing.assert_array_equal(found.mask, probabilities.argmax(-1))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (PETS, "got 3: pet, background, border"),
        (Classes.from_dict([{"name": "a", "foreground": 0}, "b"]), "got 2: a, b"),
        (Classes.from_dict([{"name": "a", "foreground": 1}, {"name": "b", "foreground": 1}]), "got 2: a, b"),
    ],
)
def test_a_threshold_is_refused_for_other_classes(classes, message):
    with pytest.raises(ConfigError, match=f"^--threshold: must come with two classes, .*; {message}$"):
        Segmentation(IMAGE, softmax(len(classes)), classes, threshold=0.3)
