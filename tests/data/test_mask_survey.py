"""What all masks of a data set say together: is 255 a class, do palettes differ, did interpolation make values?"""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from petseg.classes import PETS, Classes
from petseg.data import mask_files
from petseg.data.folders.inferred_classes import classes_from_masks
from petseg.data.mask_survey import MaskFacts, MaskSurvey

TWO = Classes.from_dict(["a", "b"])
MANY = Classes.from_dict([f"c{i}" for i in range(21)])
COLORS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)


def drawn(values, count=4, side=96, radii=(6, 16)):
    """Masks with an ellipse of each value, uint8 [side, side]."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        picture = Image.new("L", (side, side))
        for value in values:
            (x, y), (a, b) = rng.integers(20, side - 20, 2).tolist(), rng.integers(*radii, 2).tolist()
            ImageDraw.Draw(picture).ellipse([x - a, y - b, x + a, y + b], fill=value)
        found.append(np.asarray(picture))
    return found


def resized(masks, method=Image.Resampling.BILINEAR, side=61):
    return [np.asarray(Image.fromarray(mask).resize((side, side), method)) for mask in masks]


def outlined(masks, width=5):
    """Masks with lines of 255 around objects, as PASCAL VOC has them."""
    pictures = [Image.fromarray(mask) for mask in masks]
    return [
        np.where(np.asarray(p.filter(ImageFilter.MaxFilter(width))) != p.filter(ImageFilter.MinFilter(width)), 255, p)
        for p in pictures
    ]


def facts(masks, classes=None):
    for i, mask in enumerate(masks):
        data = io.BytesIO()
        picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask.astype(np.uint8))
        picture.save(data, "PNG")
        yield f"{i}.png", MaskFacts.of(mask_files.decode(data.getvalue(), classes.colored if classes else None))


def judged(masks, classes=None):
    """Faults and notes of masks."""
    survey = MaskSurvey(classes)
    for name, of_mask in facts(masks, classes):
        survey.add(name, of_mask)
    return " ".join(map(str, survey.faults())), " ".join(survey.notes())


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (drawn([1, 255]), "in 4 masks 255 covers compact regions, not lines (0.png, 1.png, ...)"),
        (drawn([1, 255, 255], radii=(2, 5)), "255 covers compact regions"),
        (drawn([1]) + drawn([255]), "4 masks hold 0 and 255 alone (4.png, 5.png, ...), 4 others hold other values"),
        (drawn([1]) + [Image.fromarray(mask > 0) for mask in drawn([1])], "4 masks hold 0 and 255 alone"),
        (drawn([85, 170, 255]), "their values 0, 85, 170, 255 are shades of grey at even distances"),
        (drawn([127, 255]), "their values 0, 127, 255 are shades of grey"),
    ],
)
def test_255_that_seems_to_be_a_class_is_a_fault_without_a_classes_file_and_a_note_with_one(masks, message):
    faults, notes = judged(masks)
    assert message in faults
    assert faults.endswith('a classes file must say what it is: a class with "value": 255, or "ignored": [255]')
    assert not notes
    faults, notes = judged(masks, Classes.from_dict([{"name": f"c{i}", "value": i} for i in (0, 1, 85, 127, 170)]))
    assert not faults
    assert message in notes
    own = [{"name": f"c{i}", "value": i} for i in (0, 1, 85, 127, 170, 255)]
    assert judged(masks, Classes.from_dict(own)) == ("", "")


def test_the_largest_value_beside_others_is_a_fault_without_classes():
    numbers = np.array([[0, 1, 65535]], np.uint16).repeat(9, 0).repeat(9, 1)
    survey = MaskSurvey(None)
    survey.add("a.tif", MaskFacts.of(mask_files.MaskValues(numbers, colored=False)))
    assert "hold 65535, the largest value" in str(survey.faults()[0])


def test_masks_of_0_and_255_are_a_fault_where_255_is_ignored():
    faults, _ = judged(drawn([255]), TWO)
    assert "hold class a alone, and, in" in faults
    assert 'the classes file must be {"classes": [{"name": "background", "value": 0}, {"name"' in faults


@pytest.mark.parametrize(
    "masks",
    [
        drawn([1, 2, 3]),
        outlined(drawn([1, 2, 15])),
        resized(outlined(drawn([1, 2, 15], side=256, radii=(20, 60))), Image.Resampling.NEAREST, 80),
        [*drawn([1, 2]), np.full((9, 9), 255)],  # one without labels
        [np.random.default_rng(i).integers(0, 20, (40, 40)) for i in range(3)],
        drawn([10, 20, 40]),
        [COLORS[mask] for mask in drawn([1, 2])],
        [mask for values in ([1], [1, 2], [1, 2, 3], [2, 3]) for mask in drawn(values)],
        [np.arange(64).reshape(8, 8) % count for count in (2, 3, 4, 5)],
    ],
    ids=["plain", "outlined", "small", "unlabelled", "noise", "greys", "colours", "single objects", "many parts"],
)
def test_ordinary_masks_have_neither_faults_nor_notes(masks):
    assert judged(masks) == ("", "")


@pytest.mark.parametrize(
    ("masks", "classes"),
    [
        (resized(drawn([255])), None),
        (resized(drawn([100, 200]), side=200), None),
        (resized(drawn([100]), Image.Resampling.BOX, 48), None),
        (resized([COLORS[mask] for mask in drawn([1, 2])], Image.Resampling.BICUBIC), None),
        ([np.asarray(Image.fromarray(mask).rotate(17, Image.Resampling.BICUBIC)) for mask in drawn([80, 160])], None),
        (resized(drawn([20])), MANY),
        (resized(resized(drawn([100, 200]), side=48), Image.Resampling.NEAREST, 96), None),
    ],
    ids=["0-255", "enlarged", "box", "colours", "rotated", "valid values", "reduced and enlarged"],
)
def test_values_that_interpolation_made_are_a_fault(masks, classes):
    faults, _ = judged(masks, classes)
    assert "occur in few pixels at edges only" in faults
    assert "by nearest neighbour and saved as PNG" in faults


def adaptive(mask):
    return Image.fromarray(COLORS[mask]).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)


def test_palettes_that_differ_are_a_fault_where_classes_are_numbers_and_colours_decide_without_classes():
    masks = [adaptive(mask) for mask in [*drawn([1, 2]), *drawn([2])]]
    faults, _ = judged(masks, MANY)
    assert "another colour than that of 0.png does; all must have one palette, or the classes" in faults
    classes, faults = classes_from_masks(list(facts(masks)))
    assert not faults
    assert {each.value for each in classes.members} == {tuple(color) for color in COLORS.tolist()}
    colored = [{"name": f"c{i}", "value": color} for i, color in enumerate(COLORS.tolist())]
    assert judged(masks, Classes.from_dict(colored)) == ("", "")


def test_a_mask_of_one_black_index_differs_from_another_colour_of_this_index():
    masks = [np.zeros((9, 9), np.uint8), drawn([1])[0]]
    pictures = [Image.fromarray(mask) for mask in masks]
    for picture, palette in zip(pictures, ([0, 0, 0], [128, 0, 0, 0, 0, 0]), strict=True):
        picture.putpalette(palette)
    assert "gives index 0 another colour" in judged(pictures, MANY)[0]


def test_colours_that_differ_in_unused_indices_or_say_nothing_are_no_fault():
    masks = [Image.fromarray(mask) for mask in drawn([1, 2])]
    for i, mask in enumerate(masks[1:]):
        mask.putpalette([*COLORS.ravel().tolist(), 40 * i, 0, 0])
    masks += [Image.fromarray(mask).convert("P") for mask in drawn([1])]  # index 1 is grey 1
    assert judged(masks) == ("", "")


def instances(count, first=1, step=1):
    """A mask of squares side by side, each with a number of its own, uint16 [64, 64]."""
    mask = np.zeros((64, 64), np.uint16)
    for i in range(count):
        mask[8 * (i // 8) + 1 : 8 * (i // 8) + 7, 8 * (i % 8) + 1 : 8 * (i % 8) + 7] = first + step * i
    return mask


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([instances(count) for count in (2, 0, 5, 9)], "hold 1 to 9, each in one place of a mask, as instance ids"),
        ([instances(2, first) for first in (24000, 26000)], "hold 24000, 24001, ..., as instance ids"),
    ],
)
def test_numbers_of_objects_are_a_fault_without_a_classes_file(masks, message):
    def survey(classes):
        found = MaskSurvey(classes)
        for mask in masks:
            found.add("a.png", MaskFacts.of(mask_files.MaskValues(mask, colored=False)))
        return " ".join(map(str, found.faults() if classes is None else found.notes()))

    assert message in survey(None)
    values = np.unique(masks).tolist()[1:]
    assert not survey(Classes.from_dict(["background", {"name": "cell", "value": values}]))
    if max(values) < 254:
        assert message in survey(Classes.from_dict([f"c{value}" for value in range(max(values) + 1)]))


def of_segments(*ids):
    """A panoptic mask, uint8 [64, 64, 3]: a square for each id, which is red + 256 green + 65536 blue."""
    table = np.array([0, *ids])
    colors = np.stack([table & 255, table >> 8 & 255, table >> 16], -1).astype(np.uint8)
    return colors[instances(len(ids))]


def test_colours_that_number_segments_are_a_fault_without_a_classes_file():
    ids = np.random.default_rng(0).integers(1, 2**24, (4, 5))
    masks = [of_segments(*of_mask) for of_mask in ids.tolist()]
    assert "colours that hardly ever recur in another mask, as in panoptic masks" in judged(masks)[0]
    in_red = [of_segments(*range(1, count + 1)) for count in (2, 5, 9)]
    assert "hold 1 to 9, each in one place of a mask, as instance ids" in judged(in_red)[0]
    classes = [{"name": f"c{i}", "value": color} for i, color in enumerate(np.unique(masks[0].reshape(-1, 3), axis=0))]
    assert not judged(masks, Classes.from_dict([{**each, "value": each["value"].tolist()} for each in classes]))[0]
    shared = [of_segments(*of_mask, *ids[0, :2].tolist()) for of_mask in ids.tolist()[1:]]
    assert judged(shared) == ("", "")


def indexed(mask, palette):
    picture = Image.fromarray(mask)
    picture.putpalette([channel for color in palette for channel in color])
    return picture


def test_a_palette_of_grey_whose_shades_are_the_values_of_other_masks_is_a_fault_without_a_classes_file():
    grey, other = drawn([1, 2], 2)
    exchanged = indexed(other, [(0, 0, 0), (2, 2, 2), (1, 1, 1)])
    assert "hold palettes of grey (1.png), whose shades, not indices, are the values" in judged([grey, exchanged])[0]
    for palette in (COLORS.tolist(), [(0, 0, 0), (127, 127, 127), (254, 254, 254)]):
        assert judged([grey, indexed(other, palette)]) == ("", "")


GREY = np.asarray(Image.fromarray(COLORS[None]).convert("L"))[0]  # of the colours


@pytest.mark.parametrize(
    ("plain", "value"),
    [
        (lambda mask: GREY[mask], 38),
        (lambda mask: np.repeat(GREY[mask][..., None], 3, axis=-1), 38),
        (lambda mask: np.where(mask, 255, 0), 255),
        (lambda mask: mask * 100, 100),
    ],
    ids=["grey of the colours", "in three bands", "0 and 255", "shades"],
)
def test_values_beside_palettes_that_are_none_of_their_indices_are_a_fault_without_a_classes_file(plain, value):
    indices = [indexed(mask, [*COLORS.tolist(), *[[9, 9, 9]] * 253]) for mask in outlined(drawn([1, 2]))]
    masks = [*indices, plain(drawn([1, 2])[0])]
    message = f"such as 1 in 0.png, and values without a palette, such as {value} in 4.png, none of which is one of "
    assert message in judged(masks)[0]
    values = np.unique(masks[-1]).tolist()[1:]
    classes = [{"name": "a"}, {"name": "b", "value": [1, *values]}, {"name": "c", "value": 2}]
    assert not judged(masks, Classes.from_dict(classes))[0]
    assert not judged([*indices, *outlined(drawn([2], 1)), np.where(masks[-1], 255, 0)])[0]


def test_palettes_that_exchange_the_colours_of_the_classes_are_a_fault():
    classes = Classes.from_dict(
        [{"name": name, "color": color} for name, color in zip("abc", COLORS.tolist(), strict=True)]
    )
    masks = drawn([1, 2])
    message = "have palettes that give value 1 the colour of c, which is 2 (0.png)"
    assert message in judged([indexed(mask, COLORS[[0, 2, 1]].tolist()) for mask in masks], classes)[0]
    for palette in (COLORS.tolist(), [(0, 0, 0), (0, 128, 0), (9, 9, 9)], [(1, 1, 1), (9, 9, 9), (8, 8, 8)]):
        assert judged([indexed(mask, palette) for mask in masks], classes) == ("", "")


@pytest.mark.parametrize("values", [[1, 2, 3], [0, 2]])
def test_shades_of_palettes_that_are_the_values_of_other_classes_are_a_fault(values):
    masks = [np.array(values)[mask] for mask in drawn(range(1, len(values)))]
    stored = [
        indexed(np.searchsorted(values, mask).astype(np.uint8), [[value] * 3 for value in values]) for mask in masks
    ]  # as GIF
    message = f"value {int(values[0] == 0)} has the shade {values[values[0] == 0]}, which is c"
    assert message in judged(stored, MANY)[0]
    own = [{"name": "a", "value": 0}, {"name": "b", "value": [1, 255]}]
    assert judged([indexed(mask, [[0] * 3, [255] * 3]) for mask in drawn([1])], Classes.from_dict(own)) == ("", "")
    assert judged([indexed(mask, [[0] * 3, [255] * 3]) for mask in drawn([1])], TWO) == ("", "")


def test_numbers_in_some_masks_and_colours_in_others_are_a_fault_without_classes():
    faults, _ = judged([*drawn([1, 2]), *(COLORS[mask] for mask in drawn([1]))])
    assert "hold numbers in 0.png, 1.png, ... and colours in others" in faults


def test_opacity_that_varies_is_a_note():
    mask = np.zeros((12, 12, 2), np.uint8)
    mask[:6, :, 0], mask[3:, :, 1] = 1, 255
    assert judged([mask], TWO) == ("", "1 masks have pixels of different opacity, which is ignored: 0.png")


def test_the_trimaps_of_pets_have_neither():
    assert judged([np.maximum(mask, 1) for mask in drawn([2, 3])], PETS) == ("", "")


def test_a_class_whose_name_means_no_class_is_a_note():
    void = Classes.from_dict(["a", "b", "Void"])
    assert judged(drawn([1]), void) == ("", "")
    assert judged(drawn([1, 2]), void)[1].startswith('Void is a class that is trained and scored; "ignored" leaves')
