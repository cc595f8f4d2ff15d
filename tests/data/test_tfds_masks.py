"""Masks of TFDS data sets are read and judged in training as in the checker, whatever the cache."""

import io

import numpy as np
import pytest
from conftest import as_array_records, data_config
from test_loading import write_data_set
from test_mask_files import COLORS, DEEP, IDS as SMALL, NAMES, pillow, tiff

from petseg.classes import Classes
from petseg.data import loading
from petseg.errors import DataError

IDS = SMALL.repeat(2, 0).repeat(2, 1)  # 32 x 32


def written(folder, masks):
    image = pillow(COLORS[IDS])
    write_data_set(folder / "data", [(io.BytesIO(image), io.BytesIO(mask)) for mask in masks], name="handmade")
    return as_array_records("handmade", folder / "data", folder / "records")


def loaded(folder, classes, tmp_path, *, cache):
    config = data_config("handmade", 32, folder, cache=cache, cache_dir=str(tmp_path / "cache"))
    return loading.load(config, "train", classes, for_training=True)


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_masks_of_a_tfds_data_set_are_read_as_the_checker_reads_them(tmp_path, cache, caplog):
    masks = [pillow(IDS * np.uint16(300)), tiff(IDS * np.uint16(300)), tiff(IDS * np.float32(300))]
    folder = written(tmp_path, masks)
    _, found = loaded(folder, DEEP, tmp_path, cache=cache).read([0, 1, 2])
    np.testing.assert_array_equal(found[..., 0], [IDS] * 3)
    if cache == "none":  # values beyond the 8 bits of the feature are in no class
        with pytest.raises(DataError, match="the mask holds value 600 and 1 more in no class"):
            loaded(folder, NAMES, tmp_path, cache=cache).read([0])


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_masks_that_do_not_mean_what_their_numbers_say_are_refused_before_training(tmp_path, cache):
    folder = written(tmp_path, [pillow((IDS > 0) * np.uint8(255))] * 3)
    two = Classes.from_dict(["a", "b"])
    with pytest.raises(DataError, match=r"handmade: the masks: hold class a alone, and, in .* 255") as caught:
        loaded(folder, two, tmp_path, cache=cache)
    assert "\n" not in str(caught.value)
    (tmp_path / "again").mkdir()
    swapped = pillow(IDS, palette=COLORS[::-1].copy())
    folder = written(tmp_path / "again", [pillow(IDS, palette=COLORS), swapped])
    with pytest.raises(DataError, match="palette gives index 0 another colour"):
        loaded(folder, NAMES, tmp_path, cache=cache)


def test_a_training_warns_where_255_may_be_a_class_and_the_checker_reads_palettes_alike(tmp_path, caplog):
    data = IDS.copy()
    data[24:, :10] = 255
    palette = np.zeros((256, 3), np.uint8)
    palette[:3] = COLORS
    folder = written(tmp_path, [pillow(data, palette=palette)] * 2)
    _, found = loaded(folder, NAMES, tmp_path, cache="memory").read([0])
    np.testing.assert_array_equal(found[0, ..., 0], data)
    (line,) = [message for message in caplog.messages if "255" in message]
    assert line.startswith(
        "handmade: the masks hold 255, which means no class by convention, but in 2 masks 255 covers"
    )
