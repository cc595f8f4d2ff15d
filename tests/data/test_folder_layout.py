import os
import unicodedata

import made_folders
import pytest
from made_folders import config, pairs, write

from petseg.data.folders import folder_layout
from petseg.data.folders.faults import Kind
from petseg.errors import ConfigError, DataError


def find(root, **values):
    return folder_layout.scan_folder(config(root, **values))


def names(layout):
    return {split: [pair.name for pair in members] for split, members in layout.splits.items()}


def faults(layout):
    return [(fault.kind, str(fault)) for fault in layout.faults]


def test_folders_decide_the_splits(tmp_path):
    files = {**pairs("b", "a", folder="train/"), **pairs("c", folder="test/"), **pairs("d", folder="val/oxford/")}
    layout = find(write(tmp_path, files))
    assert names(layout) == {
        "train": ["images/train/a.jpg", "images/train/b.jpg"],
        "val": ["images/val/oxford/d.jpg"],
        "test": ["images/test/c.jpg"],
    }
    assert layout.splits["val"][0].mask_name == "masks/val/oxford/d.png"
    assert not layout.faults


def test_lists_of_splits_name_images_with_or_without_their_ending_and_folder(tmp_path):
    write(tmp_path, {**pairs("a", "b", "d", "e"), "images/c.jfif": None, "masks/c.png": None})
    (tmp_path / "train.TXT").write_text("a\nb.jpg\n\nimages/c.jpg\n")
    (tmp_path / "val.txt").write_text("/data/far/away/d.png /data/far/away/d_mask.png\n")
    (tmp_path / "LICENSE.txt").write_text("No rights reserved\n")
    layout = find(tmp_path)
    assert names(layout) == {"train": ["images/a.jpg", "images/b.jpg", "images/c.jfif"], "val": ["images/d.jpg"]}
    assert layout.notes[0] == "1 images are in no split list and are left out"
    assert not layout.faults


def test_an_image_that_no_list_names_needs_no_mask(tmp_path):
    write(tmp_path, {**pairs("a", "b"), "images/c.jpg": None})
    (tmp_path / "train.txt").write_text("a\nb\n")
    assert not find(tmp_path).faults


def test_an_entry_of_a_list_that_matches_no_image_is_a_fault(tmp_path):
    write(tmp_path, pairs("a"))
    (tmp_path / "train.txt").write_text("a\nz\n")
    assert faults(find(tmp_path)) == [
        (Kind.LISTED, "train.txt: entry 2 is 'z'; must be the name of an image"),
    ]


def test_without_folders_and_lists_a_hash_decides_which_does_not_change_when_images_are_added(tmp_path):
    few = names(find(write(tmp_path / "few", pairs(*map(str, range(40))))))
    many = names(find(write(tmp_path / "many", pairs(*map(str, range(200))))))
    assert all(set(few[split]) <= set(many[split]) for split in few)
    assert list(many) == ["train", "val", "test"]
    assert 0.7 < len(many["train"]) / 200 < 0.9
    assert sum(map(len, many.values())) == 200


def test_patterns_with_split_and_name_find_pairs(tmp_path):
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


def test_masks_that_the_pattern_of_images_matches_are_no_images(tmp_path):
    files = {"train/a.png": None, "trainannot/a.png": None, "train/b.png": None, "trainannot/b.png": None}
    layout = find(write(tmp_path, files), image_files="{split}/*.png", mask_files="{split}annot/{name}.png")
    assert names(layout) == {"train": ["train/a.png", "train/b.png"]}
    assert not layout.faults


def test_all_missing_masks_and_images_are_faults_with_the_expected_path(tmp_path):
    write(tmp_path, {**pairs("a"), "images/b.jpg": None, "images/c.tif": None, "masks/d.png": None})
    assert faults(find(tmp_path)) == [
        (Kind.NO_MASK, "images/b.jpg: has no mask; must be masks/b.png"),
        (Kind.NO_MASK, "images/c.tif: has no mask; must be masks/c.png"),
        (Kind.NO_PICTURE, "masks/d.png: is the mask of no image that images/* matches"),
    ]


def test_masks_with_longer_names_are_found_by_the_flags_that_the_fault_suggests(tmp_path):
    write(tmp_path, {"images/train/a.jpg": None, "masks/train/a_mask.png": None})
    ((_, text),) = [fault for fault in faults(find(tmp_path)) if fault[0] == Kind.NO_MASK]
    assert text.endswith("--image_files='images/{split}/**/*' --mask_files='masks/{split}/{name}_mask.png'")
    assert not find(tmp_path, image_files="images/{split}/**/*", mask_files="masks/{split}/{name}_mask.png").faults


def test_the_suggested_flags_are_those_of_the_shortest_name(tmp_path):
    write(tmp_path, {f"{name}{end}": None for name in ("1", "10") for end in (".jpg", "_mask.png")})
    found = find(tmp_path, image_files="*.jpg", mask_files="{name}.png").faults
    assert str(found[0]).endswith("--mask_files='{name}_mask.png'")


@pytest.mark.parametrize(("images", "masks"), [("*.jpg", "{name}.*"), ("*", "{name}.png")])
def test_an_image_is_not_its_own_mask(tmp_path, images, masks):
    write(tmp_path, {f"{name}.{end}": None for name in ("1", "2") for end in ("jpg", "png")})
    layout = find(tmp_path, image_files=images, mask_files=masks)
    assert {(pair.name, pair.mask_name) for pairs in layout.splits.values() for pair in pairs} == {
        ("1.jpg", "1.png"), ("2.jpg", "2.png"),
    }  # fmt: skip


def test_several_masks_of_an_image_and_several_images_of_a_mask_are_faults(tmp_path):
    write(tmp_path, {**pairs("a", "b"), "masks/a.tif": None, "images/b.png": None})
    assert faults(find(tmp_path)) == [
        (Kind.AMBIGUOUS, "images/a.jpg: has 2 masks, masks/a.png, masks/a.tif; must be one"),
        (Kind.AMBIGUOUS, "images/b.png: has the mask of images/b.jpg too, masks/b.png; each must have its own"),
    ]


def test_images_outside_of_the_folders_of_splits_are_faults(tmp_path):
    write(tmp_path, {**pairs("a", folder="train/"), "images/b.jpg": None})
    assert faults(find(tmp_path)) == [
        (Kind.AMBIGUOUS, "images/b.jpg: is beside the folders of the splits; must be in one")
    ]


@pytest.mark.parametrize(
    ("files", "flags", "error", "message"),
    [
        ({}, {}, DataError, "has no folder images; must have images and masks, or --image_files say where"),
        ({"images/a.jpg": None}, {}, DataError, "has no folder masks"),
        ({"images/a.txt": b"", "masks/a.png": None}, {}, DataError, r"images/\* matches no image.*must end in .jpg"),
        ({"images/a.jpg": None, "masks/a.txt": b""}, {}, DataError, r"matches no mask, and images/\* 1 images"),
        (pairs("a"), {"image_files": "*.jpg", "mask_files": "{name}.png"}, DataError, r"\*.jpg matches no image"),
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


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"^--data_dir=.*nowhere: must be a folder"):
        find(tmp_path / "nowhere")


FLAT = {"image_files": "images/*", "mask_files": "masks/{name}.*"}


@pytest.mark.parametrize("folder", ["", "train/"])
def test_names_that_are_not_utf_8_are_shown_escaped_and_found(tmp_path, folder):
    write(tmp_path / "mine", pairs("a", folder=folder))
    for kind, end in (("images", "jpg"), ("masks", "png")):
        file = tmp_path / "mine" / kind / folder / f"a.{end}"
        os.rename(file, os.fsencode(file.parent) + b"/caf\xe9." + end.encode())
    layout = find(tmp_path / "mine")
    assert not layout.faults
    ((pair,),) = layout.splits.values()
    assert pair.name == f"images/{folder}caf\\xe9.jpg"
    assert pair.image.exists()


def test_a_list_may_contain_names_that_are_not_utf_8(tmp_path):
    root = write(tmp_path / "mine", pairs("a", "b"))
    for file in (root / "images" / "a.jpg", root / "masks" / "a.png"):
        os.rename(file, os.fsencode(file.parent) + b"/caf\xe9" + os.fsencode(file.suffix))
    (root / "train.txt").write_bytes(b"caf\xe9\n")
    (root / "test.txt").write_bytes(b"b\n\xe8\n")
    layout = find(root)
    assert names(layout)["train"] == ["images/caf\\xe9.jpg"]
    assert faults(layout) == [(Kind.LISTED, "test.txt: entry 2 is '\\xe8'; must be the name of an image")]


@pytest.mark.parametrize(("picture", "partner"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"image_files": "images/{split}/**/*.jpg", "mask_files": "masks/{split}/**/{name}.png"},
        {"image_files": "images/{split}/größe/{name}.jpg", "mask_files": "masks/{split}/gr[aö]ße/{name}.png"},
    ],
)
def test_composed_and_decomposed_names_are_the_same(tmp_path, picture, partner, flags):
    image, mask = (unicodedata.normalize(form, "größe/züge") for form in (picture, partner))
    write(tmp_path, {f"images/train/{image}.jpg": None, f"masks/train/{mask}.png": None})
    layout = find(tmp_path, **flags)
    assert not layout.faults
    assert [pair.mask_name for pair in layout.splits["train"]] == [f"masks/train/{mask}.png"]


def test_composed_and_decomposed_names_in_a_list_are_the_same(tmp_path):
    write(tmp_path, pairs(unicodedata.normalize("NFD", "züge")))
    (tmp_path / "train.txt").write_text(unicodedata.normalize("NFC", "züge"), "utf-8")
    assert len(find(tmp_path).splits["train"]) == 1


@pytest.mark.parametrize("folder", ["", "train/"])
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_broken_link_is_a_fault_that_names_it(tmp_path, folder, kind):
    write(tmp_path, pairs("a", "b", folder=folder))
    (file,) = (tmp_path / kind / folder).glob("a.*")
    file.unlink()
    file.symlink_to("/gone/a.file")
    name = file.relative_to(tmp_path).as_posix()
    assert faults(find(tmp_path)) == [
        (
            Kind.UNREADABLE,
            f"{name}: cannot be read: it is a link to /gone/a.file, which cannot be followed; must be a complete image",
        )
    ]


def test_a_link_to_itself_is_no_hint_of_other_annotations(tmp_path):
    write(tmp_path, pairs("a", folder="train/"))
    (tmp_path / "images" / "train" / "loop.jpg").symlink_to("loop.jpg")
    with pytest.raises(DataError, match=r"nowhere/\*.jpg matches no image; --image_files must say where they are"):
        find(tmp_path, image_files="nowhere/*.jpg", mask_files="masks/{name}.png")


def test_a_link_to_a_folder_above_it_is_not_followed(tmp_path):
    write(tmp_path, pairs("a", folder="train/") | pairs("b", folder="test/"))
    for kind in ("images", "masks"):
        (tmp_path / kind / "train" / "up").symlink_to("..")
        (tmp_path / kind / "val").symlink_to("test")
    layout = find(tmp_path)
    assert {split: len(found) for split, found in layout.splits.items()} == {"train": 1, "val": 1, "test": 1}


def test_broken_links_in_the_place_of_folders_are_faults(tmp_path):
    write(tmp_path, pairs("a", folder="test/"))
    (tmp_path / "images" / "train").symlink_to("/gone")
    link = r"images/train: is a link to /gone, which cannot be followed; must lead to the folder of a split"
    assert faults(find(tmp_path)) == [(Kind.UNREADABLE, link)]
    os.rename(tmp_path / "images" / "test", tmp_path / "elsewhere")
    with pytest.raises(DataError, match=link):
        find(tmp_path)
    os.rename(tmp_path / "images", tmp_path / "other")
    (tmp_path / "images").symlink_to("/gone/too")
    with pytest.raises(DataError, match="images is a link to /gone/too, which cannot be followed"):
        find(tmp_path)


def test_a_fifo_is_a_fault_and_is_not_opened(tmp_path):
    write(tmp_path, pairs("a", "b", folder="train/"))
    (tmp_path / "images/train/a.jpg").unlink()
    os.mkfifo(tmp_path / "images/train/a.jpg")
    ((kind, text),) = faults(find(tmp_path))
    assert kind == Kind.UNREADABLE
    assert "images/train/a.jpg: cannot be read: it is no regular file" in text


@pytest.mark.parametrize("brackets", ["[z-a]", "[9-0]", "[!b-a]"])
@pytest.mark.parametrize("flag", ["image_files", "mask_files"])
def test_brackets_that_describe_no_characters_are_named_with_their_flag(tmp_path, brackets, flag):
    write(tmp_path, pairs("a"))
    flags = {**FLAT, flag: f"{FLAT[flag]}{brackets}*"}
    with pytest.raises(
        ConfigError, match=rf"^--{flag}=.*: its brackets are not a set of characters.*must be like \[0-9\]"
    ):
        find(tmp_path, **flags)


@pytest.mark.parametrize("brackets", ["[ab]", "[!c]", "[]a]", "[a^]", "[\\a]", "[[a]", "[&&a-]"])
def test_sets_of_characters_match_as_in_a_shell(tmp_path, brackets):
    write(tmp_path, pairs("a", "c", folder="train/"))
    layout = find(tmp_path, image_files=f"images/{{split}}/{brackets}.jpg", mask_files="masks/{split}/{name}.png")
    assert names(layout) == {"train": ["images/train/a.jpg"]}


UNLABELLED = {"images/test/z.jpg": None, "images/test/y.jpg": None}
LABELLED = {**pairs("a", folder="train/"), **pairs("b", folder="val/")}


def test_a_split_without_masks_is_left_out_unless_a_flag_names_it(tmp_path):
    write(tmp_path, {**LABELLED, **UNLABELLED})
    layout = find(tmp_path, eval_split="val[:50%]")
    assert not layout.faults
    assert list(layout.splits) == ["train", "val"]
    assert layout.left_out["test"].startswith(
        "split test is left out: images/test/y.jpg: has no mask; must be masks/test/y.png"
    )
    for flags in ({}, {"eval_split": "val+test"}, {"train_split": "test[:1]", "eval_split": "val"}):
        (first, _) = faults(find(tmp_path, **flags))
        assert first[0] == Kind.NO_MASK
        assert "no image of split test has one, and --train_split and --eval_split may name train, val" in first[1]


def test_where_a_flag_names_a_split_that_does_not_exist_faults_of_all_splits_count(tmp_path):
    write(tmp_path, {**LABELLED, "images/extra/z.jpg": None})
    assert faults(find(tmp_path))[0][0] == Kind.NO_MASK
    assert not find(tmp_path, eval_split="val").faults


def test_a_spare_mask_is_a_note_unless_a_flag_names_its_split(tmp_path):
    write(tmp_path, {**LABELLED, "masks/val/z.png": None})
    layout = find(tmp_path, eval_split="train")
    assert not layout.faults
    assert list(layout.splits) == ["train", "val"]
    assert layout.notes == ("1 masks have no image and are not used, the first is masks/val/z.png",)
    assert faults(find(tmp_path, eval_split="val")) == [
        (Kind.NO_PICTURE, "masks/val/z.png: is the mask of no image that images/{split}/**/* matches")
    ]


def test_a_spare_mask_beside_lists_or_in_a_folder_of_no_split_is_a_note(tmp_path):
    write(tmp_path, {**pairs("a", "b"), "masks/z.png": None})
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "test.txt").write_text("b\n")
    layout = find(tmp_path)
    assert not layout.faults
    assert "1 masks have no image and are not used, the first is masks/z.png" in layout.notes


def test_a_folder_with_an_invalid_split_name_is_left_out_with_a_note(tmp_path):
    write(tmp_path, {**LABELLED, **pairs("c", folder="my-split/")})
    layout = find(tmp_path, eval_split="val")
    assert list(layout.splits) == ["train", "val"]
    assert "finds a split named 'my-split', which is left out; a name must be of letters" in layout.notes[0]


CITYSCAPES = [
    f"{kind}/{split}/{town}/{town}_{end}.png"
    for split, town in (("train", "aachen"), ("val", "ulm"), ("test", "bonn"))
    for kind, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds"), ("gtFine", "gtFine_color"))
]
PUBLIC_LAYOUTS = {
    "VOC": (
        ["JPEGImages/2007_01.jpg", "JPEGImages/2007_02.jpg", "JPEGImages/2008_03.jpg", "SegmentationClass/2007_01.png",
         "SegmentationClass/2007_02.png"],
        {"ImageSets/Segmentation/train.txt": "2007_01\n", "ImageSets/Segmentation/val.txt": "2007_02\n",
         "ImageSets/Segmentation/trainval.txt": "2007_01\n2007_02\n", "ImageSets/Main/cat_train.txt": "2008_03 -1\n"},
        {"image_files": "JPEGImages/*.jpg", "mask_files": "SegmentationClass/{name}.png", "eval_split": "val"},
        {"train": 1, "val": 1, "trainval": 2},
    ),
    "VOC with paths": (
        ["JPEGImages/1.jpg", "JPEGImages/2.jpg", "SegmentationClassAug/1.png", "SegmentationClassAug/2.png"],
        {"train.txt": "/JPEGImages/1.jpg /SegmentationClassAug/1.png", "val.txt": "/JPEGImages/2.jpg /x/2.png"},
        {"image_files": "JPEGImages/*.jpg", "mask_files": "SegmentationClassAug/{name}.png", "eval_split": "val"},
        {"train": 1, "val": 1},
    ),
    "CamVid": (
        ["train/1.png", "trainannot/1.png", "val/2.png", "valannot/2.png", "test/3.png", "testannot/3.png"],
        {"train.txt": "/SegNet/CamVid/train/1.png /SegNet/CamVid/trainannot/1.png\n"},
        {"image_files": "{split}/*.png", "mask_files": "{split}annot/{name}.png"},
        {"train": 1, "val": 1, "test": 1},
    ),
    "Cityscapes": (
        [*CITYSCAPES, "leftImg8bit/train_extra/jena/jena_leftImg8bit.png"],
        {},
        {"image_files": "leftImg8bit/{split}/**/{name}_leftImg8bit.png",
         "mask_files": "gtFine/{split}/**/{name}_gtFine_labelIds.png", "eval_split": "val"},
        {"train": 1, "val": 1, "test": 1},
    ),
    "ADE20K": (
        ["images/training/1.jpg", "annotations/training/1.png", "images/validation/2.jpg",
         "annotations/validation/2.png", "images/testing/3.jpg"],
        {"objectInfo150.txt": "Idx\tRatio\n1\t0.2\n"},
        {"image_files": "images/{split}/*.jpg", "mask_files": "annotations/{split}/{name}.png",
         "train_split": "training", "eval_split": "validation"},
        {"training": 1, "validation": 1},
    ),
    "Kaggle": (
        ["train_images/1.jpg", "train_images/2.jpg", "train_masks/1_mask.gif", "train_masks/2_mask.gif", "test/3.jpg"],
        {"metadata.txt": "1 car\n"},
        {"image_files": "train_images/*.jpg", "mask_files": "train_masks/{name}_mask.gif"},
        {"train": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", [*PUBLIC_LAYOUTS])
def test_layouts_of_public_data_sets_are_paired(tmp_path, layout):
    files, texts, flags, sizes = PUBLIC_LAYOUTS[layout]
    write(tmp_path, dict.fromkeys(files))
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = find(tmp_path, **flags)
    assert not found.faults
    assert {split: len(members) for split, members in found.splits.items()} == sizes
