"""Which images a list of a split names."""

import pytest
from made_folders import config, pairs, write

from petseg.data.folders import folder_layout
from petseg.data.folders.faults import Kind

NESTED = {"image_files": "images/**/*.jpg", "mask_files": "masks/**/{name}.png"}


def find(root, lists, **flags):
    for name, content in lists.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder_layout.scan_folder(config(root, **flags))


def names(layout):
    return {split: [pair.name for pair in members] for split, members in layout.splits.items()}


def faults(layout):
    return [str(fault) for fault in layout.faults]


@pytest.fixture
def nested(tmp_path):
    return write(tmp_path / "mine", {**pairs("0", "1", folder="a/"), **pairs("0", "1", folder="b/")})


@pytest.fixture
def flat(tmp_path):
    return write(tmp_path / "mine", pairs("0", "1", "2", "3"))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("a/0.jpg\na/1.jpg\n", "b/0.jpg\n"),
        ("a/0\na/1\n", "b/0\n"),
        ("images/a/0.jpg\nimages/a/1.jpg", "images/b/0.jpg"),
        ("/far/away/images/a/0.jpg\n./a/1.png\n", "/elsewhere/b/0.jpg 7\n"),
        ("a\\0.jpg\r\n.\\a\\1.jpg\r\n", "C:\\data\\images\\b\\0.jpg\r\n"),
        ("\ufeffa/0.jpg\na/1.jpg\n", "\ufeffb/0.jpg\n"),
        ("a/0.jpg\na/1.jpg\n".encode("utf-16"), "b/0.jpg".encode("utf-16")),
        ("/x/images/a/0.jpg /x/masks/a/0.png\n/x/images/a/1.jpg /x/masks/a/1.png\n", "images/b/0.jpg\tmasks/b/0.png"),
    ],
)
def test_images_with_one_file_name_in_two_folders_are_kept_apart(nested, train, test):
    layout = find(nested, {"train.txt": train, "test.txt": test}, **NESTED)
    assert names(layout) == {"train": ["images/a/0.jpg", "images/a/1.jpg"], "test": ["images/b/0.jpg"]}
    assert not layout.faults


def test_lists_take_precedence_over_folders_without_usual_split_names(nested):
    layout = find(nested, {"train.txt": "a/0\na/1\n", "test.txt": "b/0\n"})
    assert names(layout) == {"train": ["images/a/0.jpg", "images/a/1.jpg"], "test": ["images/b/0.jpg"]}
    assert layout.splits["test"][0].mask_name == "masks/b/0.png"


def test_a_name_that_several_images_have_is_a_fault(nested):
    layout = find(nested, {"train.txt": "a/0\n1\n", "test.txt": "b/0.jpg"}, **NESTED)
    assert faults(layout) == [
        "train.txt: entry 2 is '1'; 2 images match, images/a/1.jpg, images/b/1.jpg; must be the path of one"
    ]


def test_an_entry_with_a_missing_folder_is_a_fault(nested):
    layout = find(nested, {"train.txt": "a/0\nc/1.jpg\n", "test.txt": "b/0"}, **NESTED)
    assert faults(layout) == ["train.txt: entry 2 is 'c/1.jpg'; must be the name of an image"]


@pytest.mark.parametrize("second", ["0", "0.jpg", "images/0.jpg", "b/0.jpg"])
def test_an_image_that_a_list_names_twice_is_a_fault(flat, second):
    layout = find(flat, {"train.txt": f"0\n1\n{second}\n", "test.txt": "2"})
    assert faults(layout) == [
        f"train.txt: entry 3 is '{second}'; must be another image than images/0.jpg, which entry 1 '0' names too"
    ]


def test_two_lists_that_mean_two_images_but_find_one_are_a_fault(flat):
    layout = find(flat, {"train.txt": "a/0.jpg\n1", "test.txt": "b/0.jpg\n2"})
    ((kind, text),) = [(fault.kind, str(fault)) for fault in layout.faults]
    assert kind == Kind.LISTED
    assert "'a/0.jpg'" in text
    assert "'b/0.jpg'" in text


def test_an_image_may_be_in_two_lists(flat):
    lists = {"train.txt": "0\n1", "val.txt": "2", "trainval.txt": "/x/images/0.jpg\n./1.jpg\n2.jpg", "test.txt": "3"}
    layout = find(flat, lists)
    assert not layout.faults
    assert names(layout)["trainval"] == ["images/0.jpg", "images/1.jpg", "images/2.jpg"]


@pytest.mark.parametrize("folder", ["", "splits/", "ImageSets/Segmentation/"])
@pytest.mark.parametrize(
    "stray",
    [
        {"README.txt": "Images of the farm.\n0\n1.jpg shows the barn\n"},
        {"notes.txt": "0"},
        {"README.txt": "images/0.jpg\nimages/1.jpg\nThe rest is for testing."},
        {"LICENSE.txt": "\n\n", "notes.txt": "0.jpg is too dark"},
    ],
)
def test_other_text_files_are_not_read_as_lists(flat, folder, stray):
    without = find(flat, {})
    assert names(find(flat, stray)) == names(without)
    lists = {f"{folder}train.txt": "0\n1", f"{folder}test.txt": "2"}
    found = names(find(flat, {**stray, **lists}))
    assert found == {"train": ["images/0.jpg", "images/1.jpg"], "test": ["images/2.jpg"]}


def test_a_list_of_another_name_counts_where_a_flag_names_it(flat):
    folds = {"fold0.txt": "0\n1", "fold1.txt": "2"}
    layout = find(flat, folds, train_split="fold0", eval_split="fold1[:50%]")
    assert names(layout) == {"fold0": ["images/0.jpg", "images/1.jpg"], "fold1": ["images/2.jpg"]}
    (note,) = find(flat, folds).notes
    assert note.startswith("fold0.txt, fold1.txt: each line names an image")
    assert "--train_split" in note


def test_beside_usual_lists_those_of_similar_names_count_whose_lines_all_name_images(flat):
    lists = {"train.txt": "0", "test.txt": "2", "train_aug.txt": "0\n3", "train_log.txt": "0 barn\nno image"}
    found = names(find(flat, lists))
    assert found["train_aug"] == ["images/0.jpg", "images/3.jpg"]
    assert "train_log" not in found


def test_names_in_lists_may_contain_spaces_and_dots(tmp_path):
    root = write(tmp_path / "mine", pairs("a b", "c.1", "c.2", "d e.f"))
    layout = find(root, {"train.txt": "a b\nc.1\nmy data/c.2.jpg masks/c.2.png", "test.txt": "d e.f.jpg d e.f.png"})
    assert not layout.faults
    assert names(layout) == {"train": [f"images/{name}.jpg" for name in ("a b", "c.1", "c.2")],
                             "test": ["images/d e.f.jpg"]}  # fmt: skip


def test_a_mask_in_a_list_that_is_not_the_one_used_is_noted(flat):
    layout = find(flat, {"train.txt": "/d/images/0.jpg /d/masks/0.png\n/images/1.jpg /fine/1.png", "test.txt": "2 1"})
    (note, *_) = (note for note in layout.notes if "name other masks" in note)
    assert "/fine/1.png of images/1.jpg, which has masks/1.png, and 0 more; --mask_files must say" in note


@pytest.mark.parametrize("between", [",", ", ", ";", "\t"])
def test_after_a_comma_or_semicolon_follows_the_mask(flat, between):
    layout = find(flat, {"train.txt": f"images/0.jpg{between}masks/1.png\n2.jpg{between}2.png"})
    assert [pair.name for pair in layout.splits["train"]] == ["images/0.jpg", "images/2.jpg"]
    assert "lists name other masks than those used: masks/1.png of images/0.jpg" in layout.notes[1]


def test_lists_in_other_forms_and_folders_are_noted(flat):
    (note,) = find(flat, {"train.csv": "0\n1", "lists/val.txt": "2", "other.csv": "3"}).notes
    assert note.startswith("lists/val.txt, train.csv: not read; lists of splits must be such as train.txt")


def test_a_list_that_cannot_be_read_is_a_fault(flat):
    (flat / "train.txt").symlink_to("nowhere")
    (flat / "test.txt").mkdir()
    assert faults(find(flat, {})) == [
        "test.txt: cannot be read: Is a directory; must be a list of images",
        "train.txt: cannot be read: No such file or directory; must be a list of images",
    ]


def test_faults_in_the_list_of_an_unneeded_split_are_a_note(flat):
    layout = find(flat, {"train.txt": "0\n1", "test.txt": "2", "val.txt": "gone\n3"})
    assert not layout.faults
    assert list(layout.splits) == ["train", "test"]
    assert layout.left_out == {"val": "split val is left out: val.txt: entry 1 is 'gone'; must be the name of an image"}
    assert faults(find(flat, {}, eval_split="val"))
