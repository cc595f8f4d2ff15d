import made_folders
import pytest
from made_folders import config, pairs, write

from petseg.data.folders import folder_layout
from petseg.data.folders.faults import Kind
from petseg.errors import ConfigError, DataError


def find(root, **values):
    return folder_layout.find(config(root, **values))


def names(layout):
    return {split: [pair.name for pair in members] for split, members in layout.splits.items()}


def faults(layout):
    return [(fault.kind, str(fault)) for fault in layout.faults]


def test_folders_of_splits(tmp_path):
    files = {**pairs("b", "a", folder="train/"), **pairs("c", folder="test/"), **pairs("d", folder="val/oxford/")}
    layout = find(write(tmp_path, files))
    assert names(layout) == {
        "train": ["images/train/a.jpg", "images/train/b.jpg"],
        "val": ["images/val/oxford/d.jpg"],
        "test": ["images/test/c.jpg"],
    }
    assert layout.splits["val"][0].mask_name == "masks/val/oxford/d.png"
    assert not layout.faults


def test_lists_of_splits_name_pictures_with_or_without_their_ending_and_folder(tmp_path):
    write(tmp_path, pairs("a", "b", "c", "d", "e"))
    (tmp_path / "train.txt").write_text("a\nb.jpg\n\nimages/c.jpg\n")
    (tmp_path / "val.txt").write_text("/data/far/away/d.png /data/far/away/d_mask.png\n")
    (tmp_path / "LICENSE.txt").write_text("No rights reserved\n")
    layout = find(tmp_path)
    assert names(layout) == {"train": [f"images/{n}.jpg" for n in "abc"], "val": ["images/d.jpg"]}
    assert layout.notes == ("1 pictures are in no list of a split, and so left out",)
    assert not layout.faults


def test_a_picture_that_no_list_names_needs_no_mask(tmp_path):
    write(tmp_path, {**pairs("a", "b"), "images/c.jpg": None})
    (tmp_path / "train.txt").write_text("a\nb\n")
    assert not find(tmp_path).faults


def test_an_entry_of_a_list_that_is_no_picture_is_a_fault(tmp_path):
    write(tmp_path, pairs("a"))
    (tmp_path / "train.txt").write_text("a\nz\n")
    assert faults(find(tmp_path)) == [
        (Kind.LISTED, "train.txt: entry 2 is 'z'; must be the name of a picture"),
    ]


def test_without_folders_and_lists_a_hash_decides_which_does_not_change_when_pictures_are_added(tmp_path):
    few = names(find(write(tmp_path / "few", pairs(*map(str, range(40))))))
    many = names(find(write(tmp_path / "many", pairs(*map(str, range(200))))))
    assert all(set(few[split]) <= set(many[split]) for split in few)
    assert list(many) == ["train", "val", "test"]
    assert 0.7 < len(many["train"]) / 200 < 0.9
    assert sum(map(len, many.values())) == 200


def test_patterns_for_any_other_layout(tmp_path):
    files = {
        f"{s}{kind}/{n}.{e}": None
        for s, n in (("train", "a"), ("val", "b"))
        for kind, e in (("", "jpg"), ("annot", "png"))
    }
    layout = find(write(tmp_path, files), image_files="{split}/*.jpg", mask_files="{split}annot/{name}.png")
    assert names(layout) == {"train": ["train/a.jpg"], "val": ["val/b.jpg"]}
    assert layout.splits["val"][0].mask_name == "valannot/b.png"


def test_patterns_with_parts_of_names_and_any_folders(tmp_path):
    files = {
        f"{kind}/{s}/{town}/x_{kind}.png": None
        for s in ("train", "val")
        for town in ("aachen", "bonn")
        for kind in ("photo", "mask")
    }
    layout = find(
        write(tmp_path, files),
        image_files="photo/{split}/**/{name}_photo.png",
        mask_files="mask/{split}/**/{name}_mask.png",
    )
    assert not layout.faults
    assert names(layout)["val"] == ["photo/val/aachen/x_photo.png", "photo/val/bonn/x_photo.png"]
    assert layout.splits["val"][1].mask_name == "mask/val/bonn/x_mask.png"


def test_masks_that_the_pattern_of_pictures_matches_are_no_pictures(tmp_path):
    files = {"train/a.png": None, "trainannot/a.png": None, "train/b.png": None, "trainannot/b.png": None}
    layout = find(write(tmp_path, files), image_files="{split}/*.png", mask_files="{split}annot/{name}.png")
    assert names(layout) == {"train": ["train/a.png", "train/b.png"]}
    assert not layout.faults


def test_partners_that_are_missing_are_all_told_and_where_they_must_be(tmp_path):
    write(tmp_path, {**pairs("a"), "images/b.jpg": None, "images/c.tif": None, "masks/d.png": None})
    assert faults(find(tmp_path)) == [
        (Kind.NO_MASK, "images/b.jpg: has no mask; must be masks/b.png"),
        (Kind.NO_MASK, "images/c.tif: has no mask; must be masks/c.png"),
        (Kind.NO_PICTURE, "masks/d.png: is the mask of no picture that images/* matches"),
    ]


def test_masks_with_longer_names_are_found_by_the_patterns_that_the_fault_tells(tmp_path):
    write(tmp_path, {"images/train/a.jpg": None, "masks/train/a_mask.png": None})
    ((_, text),) = [fault for fault in faults(find(tmp_path)) if fault[0] == Kind.NO_MASK]
    assert text.endswith("--image_files='images/{split}/**/*' --mask_files='masks/{split}/{name}_mask.png'")
    assert not find(tmp_path, image_files="images/{split}/**/*", mask_files="masks/{split}/{name}_mask.png").faults


def test_two_masks_for_a_picture_and_two_pictures_for_a_mask(tmp_path):
    write(tmp_path, {**pairs("a", "b"), "masks/a.tif": None, "images/b.png": None})
    assert faults(find(tmp_path)) == [
        (Kind.AMBIGUOUS, "images/a.jpg: has 2 masks, masks/a.png, masks/a.tif; must be one"),
        (Kind.AMBIGUOUS, "images/b.png: has the mask of images/b.jpg too, masks/b.png; each must have its own"),
    ]


def test_pictures_beside_the_folders_of_splits(tmp_path):
    write(tmp_path, {**pairs("a", folder="train/"), "images/b.jpg": None})
    assert faults(find(tmp_path)) == [
        (Kind.AMBIGUOUS, "images/b.jpg: is beside the folders of the splits; must be in one")
    ]


@pytest.mark.parametrize(
    ("files", "flags", "error", "message"),
    [
        ({}, {}, DataError, "has no folder images; must have images and masks, or --image_files say where"),
        ({"images/a.jpg": None}, {}, DataError, "has no folder masks"),
        ({"images/a.txt": b"", "masks/a.png": None}, {}, DataError, r"images/\* matches no picture.*must end in .jpg"),
        ({"images/a.jpg": None, "masks/a.txt": b""}, {}, DataError, r"matches no mask, and images/\* 1 pictures"),
        (pairs("a"), {"image_files": "*.jpg", "mask_files": "{name}.png"}, DataError, r"\*.jpg matches no picture"),
        (pairs("a"), {"image_files": "images/*", "mask_files": "x/{name}.png"}, DataError, "matches no mask"),
        (pairs("a"), {"image_files": "images/*", "mask_files": "{split}/{name}.png"}, ConfigError, "must have it too"),
        (pairs("a", folder="my-split/"), {}, ConfigError, "split named 'my-split'; a name must be of letters"),
        (pairs("a", folder="all/"), {}, ConfigError, "not be all"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_read_is_named_in_one_line(tmp_path, files, flags, error, message):
    with pytest.raises(error, match=message) as caught:
        find(made_folders.write(tmp_path, files), **flags)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"^--data_dir=.*nowhere: must be a folder"):
        find(tmp_path / "nowhere")
