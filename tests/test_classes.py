import json

import numpy as np
import pytest

from petseg.classes import DISTINCT_COLORS, IGNORED, PETS, UNKNOWN, Classes, distinct_color
from petseg.data.folders import mask_values
from petseg.errors import ConfigError


def named(count, **values):
    return [{"name": f"c{i}", **values} for i in range(count)]


def test_names_alone_are_enough():
    for content in (["sky", "sea", "sand"], {"classes": ["sky", {"name": "sea"}, "sand"]}):
        classes = Classes.from_dict(content)
        assert classes.names == ("sky", "sea", "sand")
        assert [each.value for each in classes.members] == [0, 1, 2]
        assert [each.color for each in classes.members] == list(DISTINCT_COLORS[:3])
        assert classes.ignored == (255,)
        assert not classes.foreground.any()


def test_of_two_classes_the_second_is_foreground_by_default():
    np.testing.assert_array_equal(Classes.from_dict(["rest", "cell"]).foreground, [0, 1])
    given = [{"name": "cell", "foreground": True}, {"name": "rest"}]
    np.testing.assert_array_equal(Classes.from_dict(given).foreground, [1, 0])


def test_255_can_be_a_class():
    classes = Classes.from_dict([{"name": "rest", "value": 0}, {"name": "cell", "value": 255}])
    assert classes.ignored == ()


def test_colours_in_masks_are_colours_in_figures():
    classes = Classes.from_dict([{"name": "a", "value": [1, 2, 3]}, {"name": "b", "value": [4, 5, 6]}])
    assert classes.colored
    np.testing.assert_array_equal(classes.palette[:3], [[1, 2, 3], [4, 5, 6], [0, 0, 0]])


def test_a_class_without_colour_has_one_that_no_other_has():
    classes = Classes.from_dict(["a", {"name": "b", "color": DISTINCT_COLORS[0]}, *named(252)])
    assert len({each.color for each in classes.members}) == 254


def test_colours_of_classes_are_all_different():
    assert len({distinct_color(i) for i in range(254)}) == 254


def test_a_written_classes_file_is_read_back(tmp_path):
    colored = Classes.from_dict({"classes": [*named(1, value=[1, 2, 3]), {"name": "x", "value": [0, 0, 0]}]})
    for classes in (PETS, colored, Classes.from_dict({"classes": named(254), "ignored": [300, 255]})):
        (tmp_path / "classes.json").write_text(json.dumps(classes.to_dict()))
        assert Classes.read(tmp_path / "classes.json") == classes


def test_the_pets_have_a_border():
    assert PETS.foreground_name == "pet"
    np.testing.assert_array_equal(PETS.borders, [2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be JSON: Expecting"),
        ("3", r'must be \{"classes": \[\{"name": ..., "value": ...\}, ...\]\}'),
        ('{"names": ["a", "b"]}', 'must be {"classes"'),
        ('{"classes": ["a", "b"], "void": 255}', "unknown key 'void'; must be one of classes, ignored"),
        ('{"classes": ["a", "b"], "classes": ["b", "a"]}', "the key 'classes' is there twice in one pair of braces"),
        ('["a", {"name": "b", "value": 2, "value": 1}]', "the key 'value' is there twice in one pair of braces"),
        ("[]", "there are 0; must be 2 to 254"),
        ('["a"]', "there are 1; must be 2 to 254"),
        (json.dumps([f"c{i}" for i in range(255)]), "there are 255; must be 2 to 254"),
        ('["a", "a"]', "a and a have one name, a; each must have another"),
        ('[{"name": "a", "value": 1}, {"name": "b"}]', "a and b have one value, 1; each must have another"),
        (
            '[{"name": "a", "color": [1, 1, 1]}, {"name": "b", "color": [1, 1, 1]}]',
            r"a and b have one color, \(1, 1, 1\); each must have another",
        ),
        (
            '[{"name": "a", "value": 0}, {"name": "b", "value": [0, 0, 1]}]',
            "repeats a value.*must have the same kind",
        ),
        ('[{"name": "a", "value": 0}, {"name": "b", "value": [[0, 0, 1]]}]', "all must have the same kind"),
        ('[{"name": "a", "value": 0}, {"name": "b", "value": [1, 0]}]', "a and b have one value, 0; each must have"),
        ('[{"name": "a", "value": [1, 2, 3]}, {"name": "b", "value": [4, 5, 256]}]', "b has value .*must be a number"),
        ('[{"name": "a", "value": []}, "b"]', r"a has value \[\]; must be a number"),
        ('{"classes": ["a", {"name": "b", "value": [1, 9]}], "ignored": 9}', "b has value 9, which is ignored"),
        ('{"classes": ["a", "b"], "ignored": [1]}', "b has value 1, which is ignored; must be one or the other"),
        ('[{"name": "a", "value": -1}, "b"]', "a has value -1; must be a number of 0 to 65535, or a colour"),
        ('[{"name": "a", "color": [1, 2, 256]}, "b"]', r"a has color \[1, 2, 256\]; must be three numbers"),
        ('[{"name": "a", "color": 7}, "b"]', "a has color 7; must be three numbers of 0 to 255"),
        ('[{"name": "a b"}, "b"]', "class 0 has name 'a b'; must be a text of letters, digits"),
        ('[{"name": "a", "foreground": 2}, "b"]', "a has foreground 2; must be true, false, or a fraction from 0 to 1"),
        ('[{"name": "a", "colour": 2}, "b"]', "unknown key 'colour'; must be one of name, value, color, foreground"),
        ("[3, 4]", "class 0 is 3; must be"),
        ('["..", "a"]', r"name '\.\.' begins with a dot; must not, since names become file names"),
        (
            f'["a", "{"x" * 101}"]',
            "name xxxxxxxxxxxxxxxxxxxx... is 101 bytes long; must be at most 100, since names become",
        ),
        ('["a", ".hidden"]', r"name '\.hidden' begins with a dot"),
        ('["a", "b", "A"]', "a and A differ only in upper and lower case; must differ otherwise"),
        ('["Straße", "STRASSE"]', "Straße and STRASSE differ only in upper and lower case"),
    ],
)
def test_an_invalid_classes_file_is_one_line(tmp_path, text, message):
    file = tmp_path / "classes.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"--classes={file}: .*{message}") as caught:
        Classes.read(file)
    assert "\n" not in str(caught.value)


COLORED = [{"name": "a", "value": [1, 2, 3]}, {"name": "b", "value": [0, 0, 0]}]


@pytest.mark.parametrize("ignored", [[255, 255, 255], [[255, 255, 255]]])
def test_three_numbers_beside_colours_are_the_one_ignored_colour(ignored):
    classes = Classes.from_dict({"classes": COLORED, "ignored": ignored})
    assert classes.ignored == ((255, 255, 255),)
    white = np.full((1, 1), 0xFFFFFF, np.int32)
    assert mask_values.MaskCoding(classes).ids(white) == IGNORED
    assert Classes.from_dict(classes.to_dict()) == classes
    assert Classes(classes.members, (255, 255, 255)) == classes


def test_three_numbers_beside_numbers_are_three_ignored_values():
    assert Classes.from_dict({"classes": ["a", "b"], "ignored": [7, 8, 255]}).ignored == (7, 8, 255)


def test_three_numbers_beside_colours_that_are_a_class_are_refused():
    with pytest.raises(ConfigError, match=r"b has value \(0, 0, 0\), which is ignored"):
        Classes.from_dict({"classes": COLORED, "ignored": [0, 0, 0]})


def test_several_values_are_one_class():
    classes = Classes.from_dict(["road", {"name": "car", "value": [1, 2, 3]}, {"name": "sky", "value": [255, 4]}])
    assert [each.values for each in classes.members] == [(0,), (1, 2, 3), (255, 4)]
    assert classes.ignored == ()
    numbers = np.array([[0, 1, 2, 3, 4, 255, 5]], np.int32)
    np.testing.assert_array_equal(mask_values.MaskCoding(classes).ids(numbers), [[0, 1, 1, 1, 2, 2, UNKNOWN]])
    assert mask_values.allowed_values_text(classes) == "0 (road), 1, 2, 3 (car), 255, 4 (sky)"
    assert Classes.from_dict(json.loads(json.dumps(classes.to_dict()))) == classes


def test_several_colours_are_one_class_and_the_first_is_its_colour_in_figures():
    entries = [{"name": "a", "value": [[1, 2, 3], [4, 5, 6]]}, {"name": "b", "value": [7, 8, 9]}]
    classes = Classes.from_dict(entries)
    assert [each.values for each in classes.members] == [((1, 2, 3), (4, 5, 6)), ((7, 8, 9),)]
    assert classes.members[0].color == (1, 2, 3)
    assert Classes.from_dict(json.loads(json.dumps(classes.to_dict()))) == classes


@pytest.mark.parametrize(
    ("values", "colored"),
    [([0, [1, 2, 3]], False), ([[0, 9], [1, 2, 3]], False), ([None, [1, 2, 3]], False), ([[4, 5, 6], [1, 2, 3]], True),
     ([[[4, 5, 6]], [1, 2, 3]], True)],
)  # fmt: skip
def test_three_numbers_are_a_colour_unless_another_class_has_numbers(values, colored):
    entries = [{"name": f"c{i}"} | ({} if value is None else {"value": value}) for i, value in enumerate(values)]
    assert Classes.from_dict(entries).colored == colored


def test_stored_classes_of_an_earlier_run_are_read_with_any_names():
    assert Classes.from_dict(["a", "A", ".."], stored=True).names == ("a", "A", "..")


def test_classes_that_differ_in_display_colours_alone_mean_the_same():
    red, blue, other = (
        Classes.from_dict([{"name": "a", "color": color, "value": value}, "b"])
        for color, value in (([255, 0, 0], 7), ([0, 0, 255], 7), ([0, 0, 255], 8))
    )
    assert red != blue
    assert red.without_display_colors == blue.without_display_colors != other.without_display_colors


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_classes_file_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "classes.json").write_text('["a", "größe"]', encoding=encoding)
    assert Classes.read(tmp_path / "classes.json").names == ("a", "größe")


def test_a_missing_classes_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"none.json: cannot be read: No such file"):
        Classes.read(tmp_path / "none.json")
