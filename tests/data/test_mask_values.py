import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from petseg.classes import IGNORED, UNKNOWN, Classes
from petseg.data import mask_files
from petseg.data.folders import inferred_classes, mask_values
from petseg.data.folders.mask_values import MaskCoding
from petseg.data.mask_survey import MaskFacts
from petseg.data.picture import from_pillow
from petseg.errors import DataError

NUMBERS = Classes.from_dict({"classes": [{"name": "a", "value": 3}, {"name": "b", "value": 700}], "ignored": [9, 255]})
COLORS = Classes.from_dict(
    {"classes": [{"name": "a", "value": [0, 0, 0]}, {"name": "b", "value": [1, 2, 3]}], "ignored": [[255, 255, 255]]}
)
PALETTE = np.array([[0, 0, 0], [1, 2, 3], [7, 7, 7]], np.uint8)


def values(array, mode=None, colored=None, palette=None):
    picture = Image.fromarray(array)
    if palette is not None:
        picture.putpalette(palette.tobytes())
    picture = from_pillow(picture.convert(mode) if mode else picture)
    found = mask_files.values_of(picture, colored)
    return found.numbers, found.colored


def test_numbers_become_ids():
    found, colored = values(np.array([[3, 9, 255, 4]], np.uint8))
    assert not colored
    np.testing.assert_array_equal(MaskCoding(NUMBERS).ids(found), [[0, IGNORED, IGNORED, UNKNOWN]])


def test_numbers_of_16_bits_become_ids():
    found, _ = values(np.array([[3, 700, 65535]], np.uint16))
    np.testing.assert_array_equal(MaskCoding(NUMBERS).ids(found), [[0, 1, UNKNOWN]])


def test_colors_become_ids():
    array = np.array([[[0, 0, 0], [1, 2, 3], [255, 255, 255], [1, 2, 4]]], np.uint8)
    for mode in ("RGB", "RGBA"):
        found, colored = values(array, mode)
        assert colored
        np.testing.assert_array_equal(MaskCoding(COLORS).ids(found), [[0, 1, IGNORED, UNKNOWN]])


def test_a_palette_is_an_index_where_classes_have_numbers_and_colours_where_they_have_colours():
    index = np.array([[0, 1, 2]], np.uint8)
    np.testing.assert_array_equal(values(index, colored=False, palette=PALETTE)[0], index)
    np.testing.assert_array_equal(values(index, colored=True, palette=PALETTE)[0], [[0, 0x010203, 0x070707]])


def test_grey_saved_as_colours_counts_as_numbers():
    grey = np.array([[0, 1, 2]], np.uint8)[..., None].repeat(3, -1)
    for colored in (None, False):
        np.testing.assert_array_equal(values(grey, colored=colored)[0], [[0, 1, 2]])


def test_a_bit_is_0_or_255_as_tensorflow_decodes_it():
    found, _ = values(np.array([[True, False]]))
    np.testing.assert_array_equal(found, [[255, 0]])


@pytest.mark.parametrize(
    ("array", "colored", "message"),
    [
        (
            np.full((2, 2), 0.5, np.float32),
            None,
            r"not whole \(0.5 at row 0, column 0\); a mask must hold whole",
        ),
        (np.full((2, 2), np.nan, np.float32), None, r"that are not whole \(nan at row 0"),
        (
            np.full((2, 2, 3), [1, 2, 3], np.uint8),
            False,
            r"holds colours \(1,2,3 at row 0, column 0\).*must be colours",
        ),
        (np.full((2, 2), 300, np.uint16), True, "numbers above 255.*must be numbers"),
        (np.full((2, 2), -1, np.int32), None, "holds values from -1 to -1; must be 0 to 65535"),
    ],
)
def test_masks_with_other_content_are_refused_with_the_reason(array, colored, message):
    with pytest.raises(DataError, match=message):
        values(array, colored=colored)


def facts(numbers, colored=False, palette=None):
    numbers, ones = np.array(numbers), np.ones(len(numbers), np.int64)
    return MaskFacts(numbers, ones, ones, ones, colored=colored, palette=None if palette is None else palette[numbers])


def found(*masks):
    classes, faults = inferred_classes.classes_from_masks([(f"{i}.png", facts(*mask)) for i, mask in enumerate(masks)])
    return classes or str(faults[0])


def test_classes_found_in_masks_have_their_values_and_the_colours_of_their_palette():
    classes = found(([0, 1, 2], False, PALETTE), ([1], False, PALETTE), ([255],))
    assert classes.names == ("class_0", "class_1", "class_2")
    assert [each.value for each in classes.members] == [0, 1, 2]
    assert [each.color for each in classes.members] == [tuple(color) for color in PALETTE.tolist()]
    assert classes.ignored == (255,)


def test_classes_found_in_masks_without_palette_have_other_colours_each():
    classes = found(([0, 4, 65000],))
    assert classes.names == ("class_0", "class_4", "class_65000")
    assert len({each.color for each in classes.members}) == 3


def test_colours_in_one_mask_make_numbers_in_others_colours():
    classes = found(([0x010203, 0], True), ([0],), ([2], False, PALETTE))
    assert [each.value for each in classes.members] == [(0, 0, 0), (1, 2, 3), (7, 7, 7)]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([([0, 255],)], 'hold 0 and 255 alone.*must be {"classes": [{"name": "background", "value": 0}'),
        ([([0],)], "hold 1 values; must be 2 to 254, one for each class"),
        ([(range(300), True)], "hold 300 colours; must be 2 to 254"),
    ],
)
def test_values_that_cannot_be_classes_are_refused(masks, message):
    start, _, end = message.partition(".*")
    assert start in found(*masks)
    assert end in found(*masks)


def test_an_encoded_mask_is_decoded_to_the_same_ids():
    ids = np.array([[0, 1, 255], [7, 253, 2]], np.uint8)
    np.testing.assert_array_equal(tf.io.decode_image(mask_values.encode_png(ids), channels=1)[..., 0], ids)
