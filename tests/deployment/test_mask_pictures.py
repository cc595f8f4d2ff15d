import io

import numpy as np
import pytest
from PIL import Image

from petseg.classes import IGNORED, PETS, Classes
from petseg.data.folders import pair_files
from petseg.data.folders.mask_values import MaskCoding
from petseg.deployment.mask_pictures import mask_picture
from petseg.deployment.segmentation import Segmentation
from petseg.errors import ConfigError

NUMBERS = Classes.from_dict([{"name": "a", "value": 7}, {"name": "b", "value": [200, 9]}])
BINARY = Classes.from_dict([{"name": "a", "value": 0}, {"name": "b", "value": 255}])
DEEP = Classes.from_dict({"classes": [{"name": "a", "value": 7}, {"name": "b", "value": [300, 9]}], "ignored": [0]})
MEMBERS = [{"name": "a", "value": [1, 2, 3]}, {"name": "b", "value": [[4, 5, 6], [7, 7, 7]]}]
VOID = Classes.from_dict({"classes": ["a", "b"], "ignored": [65535]})
COLORS = Classes.from_dict({"classes": MEMBERS, "ignored": [0, 0, 0]})
IDS = np.random.default_rng(0).choice(np.array([0, 1], np.uint8), (12, 16))


@pytest.mark.parametrize(
    ("classes", "mode"),
    [(NUMBERS, "L"), (BINARY, "L"), (PETS, "L"), (DEEP, "I;16"), (VOID, "I;16"), (COLORS, "RGB")],
)
def test_masks_in_the_data_sets_own_values_are_read_back_to_the_same_class_ids(classes, mode):
    ids = IDS.copy()
    if classes.ignored:
        ids[0, 0] = IGNORED
    picture, image, mask = mask_picture(ids, classes, "own"), io.BytesIO(), io.BytesIO()
    assert picture.mode == mode
    picture.save(mask, "PNG")
    Image.new("RGB", (16, 12)).save(image, "PNG")
    pair = pair_files.decode_pair("a", image.getvalue(), "b", mask.getvalue(), MaskCoding(classes))
    assert not pair.faults
    np.testing.assert_array_equal(pair.ids, ids)


def test_a_class_with_several_values_is_written_with_its_first():
    assert set(np.unique(mask_picture(IDS, DEEP, "own"))) == {7, 300}


def test_class_ids_have_a_palette():
    picture = mask_picture(IDS, COLORS)
    np.testing.assert_array_equal(picture, IDS)
    np.testing.assert_array_equal(picture.convert("RGB"), COLORS.palette[IDS])


def test_other_values_are_refused():
    with pytest.raises(ConfigError, match="mask_values=colors: must be one of ids, own"):
        mask_picture(IDS, PETS, "colors")


@pytest.mark.parametrize("opacity", [50, -0.1, "half"])
def test_an_overlay_refuses_an_opacity_that_is_no_fraction(opacity):
    segmentation = Segmentation(np.zeros([2, 2, 3], np.uint8), np.full([2, 2, 3], 1 / 3, np.float32), PETS)
    assert segmentation.overlay(np.float32(1)).getpixel((0, 0)) == tuple(PETS.palette[0])
    with pytest.raises(ConfigError, match=f"opacity={opacity!r}: must be a number from 0 to 1"):
        segmentation.overlay(opacity)
