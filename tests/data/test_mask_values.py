import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, strategies as st
from PIL import Image

from petseg.classes import IGNORED, UNKNOWN, Classes
from petseg.data import mask_decoding
from petseg.data.folders import mask_values
from petseg.data.folders.mask_values import MaskCoding
from petseg.errors import ConfigError, DataError

NUMBERS = Classes.from_dict({"classes": [{"name": "a", "value": 3}, {"name": "b", "value": 700}], "ignored": [9, 255]})
COLORS = Classes.from_dict(
    {"classes": [{"name": "a", "value": [0, 0, 0]}, {"name": "b", "value": [1, 2, 3]}], "ignored": [[255, 255, 255]]}
)
PALETTE = np.array([[0, 0, 0], [1, 2, 3], [7, 7, 7]], np.uint8)


def values(array, mode=None, colored=None, palette=None):
    picture = Image.fromarray(array)
    if palette is not None:
        picture.putpalette(palette.tobytes())
    return mask_values.values_in(picture.convert(mode) if mode else picture, colored)


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
        (np.zeros((2, 2), np.float32), None, "floating point numbers; a mask must hold whole numbers"),
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


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4), st.booleans())
def test_tensorflow_codes_as_numpy_does(numbers, colored):
    classes = COLORS if colored else NUMBERS
    array = np.array(numbers, np.int32).reshape(2, 2)
    pixels = (
        np.stack([array >> 16, array >> 8 & 255, array & 255], -1).astype(np.uint8)
        if colored
        else array[..., None].astype(np.uint16)
    )
    ids = mask_decoding.class_ids(tf.constant(pixels), classes)
    assert ids.dtype == tf.uint8
    np.testing.assert_array_equal(ids[..., 0], MaskCoding(classes).ids(array))


def test_values_of_no_class_are_described_in_errors():
    pixels = tf.constant([[[3], [4]]], tf.uint8)
    number = mask_decoding.invalid_value(pixels, mask_decoding.class_ids(pixels, NUMBERS))
    assert mask_values.value_text(int(number), NUMBERS.colored) == "value 4"
    assert mask_decoding.invalid_value(pixels, tf.zeros_like(pixels)) == mask_decoding.NONE


def found(*masks):
    return mask_values.classes_from_values(
        [(np.array(numbers), colored, palette) for numbers, colored, palette in masks]
    )


def test_classes_found_in_masks_have_their_values_and_the_colours_of_their_palette():
    classes = found(([0, 2, 255], False, PALETTE.tobytes()), ([1], False, PALETTE.tobytes()))
    assert classes.names == ("class_0", "class_1", "class_2")
    assert [each.value for each in classes.members] == [0, 1, 2]
    assert [each.color for each in classes.members] == [tuple(color) for color in PALETTE.tolist()]
    assert classes.ignored == (255,)


def test_classes_found_in_masks_without_palette_have_other_colours_each():
    classes = found(([0, 4, 65000], False, b""))
    assert classes.names == ("class_0", "class_4", "class_65000")
    assert len({each.color for each in classes.members}) == 3


def test_colours_in_one_mask_make_numbers_in_others_colours():
    classes = found(([0x010203, 0], True, b""), ([0], False, b""), ([2], False, PALETTE.tobytes()))
    assert [each.value for each in classes.members] == [(0, 0, 0), (1, 2, 3), (7, 7, 7)]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            [([0, 255], False, b"")],
            r'hold 0 and 255 alone.*must be \{"classes": \[\{"name": "background", "value": 0\}',
        ),
        ([([0], False, b"")], "hold 1 values; must be 2 to 254, one for each class"),
        ([(range(300), True, b"")], "hold 300 colours; must be 2 to 254"),
    ],
)
def test_values_that_cannot_be_classes_are_refused(masks, message):
    with pytest.raises(ConfigError, match=message):
        found(*masks)


def test_an_encoded_mask_is_decoded_to_the_same_ids():
    ids = np.array([[0, 1, 255], [7, 253, 2]], np.uint8)
    np.testing.assert_array_equal(tf.io.decode_image(mask_values.encode_png(ids), channels=1)[..., 0], ids)
