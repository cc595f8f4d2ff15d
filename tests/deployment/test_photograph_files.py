"""Which photographs `--predict` finds, the names of their outputs, and which outputs exist."""

import logging
import os

import numpy as np
import pytest
from PIL import Image

from petseg.classes import PETS
from petseg.deployment import photograph_files
from petseg.deployment.output_files import Outputs
from petseg.deployment.photograph_files import Plan
from petseg.deployment.segmentation import Segmentation
from petseg.errors import DataError, WorkDirectoryError


def save(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 6), "red").save(file)


def carry_out(plan):
    """Writes masks without a network."""
    segmentation = Segmentation(np.zeros((6, 9, 3), np.uint8), np.full((6, 9, 3), 1 / 3, np.float32), PETS)
    return [plan.write(photograph, segmentation) for photograph in plan.photographs]


def plan(pattern, output_dir, *, skip_existing=False, **outputs):
    return Plan.make(str(pattern), str(output_dir), Outputs(PETS, **outputs), skip_existing=skip_existing)


def masks(pattern, output_dir, **options):
    written = carry_out(plan(pattern, output_dir, **options))
    return [str(file.relative_to(output_dir)) for file in written]


def test_subfolders_are_searched_and_kept(tmp_path):
    names = ("a.jpg", "deep/er/b.PNG", "other/b.png", ".hidden/c.jpg", "deep/._d.jpg", "notes.txt")
    for name in names:
        if name.endswith("txt"):
            (tmp_path / name).write_text("no photograph")
        else:
            save(tmp_path / "in" / name)
    expected = ["a.mask.png", "deep/er/b.mask.png", "other/b.mask.png"]
    assert masks(tmp_path / "in", tmp_path / "out") == expected
    # Also where only one subfolder has any: names do not depend on what else is there.
    assert masks(tmp_path / "in" / "deep", tmp_path / "out") == ["er/b.mask.png"]
    assert masks(tmp_path / "in" / "*" / "*" / "*.PNG", tmp_path / "out") == ["deep/er/b.mask.png"]
    assert masks(tmp_path / "in" / "**" / "b.*", tmp_path / "out") == expected[1:]
    assert masks(tmp_path / "in" / "other" / "b.png", tmp_path / "out") == ["b.mask.png"]


def test_a_link_to_a_folder_above_does_not_multiply_photographs(tmp_path):
    save(tmp_path / "in" / "a.png", tmp_path / "in" / "sub" / "b.png")
    (tmp_path / "in" / "sub" / "up").symlink_to("..")
    for pattern in ("", "**", "**/*.png"):
        assert masks(tmp_path / "in" / pattern, tmp_path / "out") == ["a.mask.png", "sub/b.mask.png"]


def test_files_of_one_name_keep_their_suffixes(tmp_path):
    save(tmp_path / "a/cat.jpg", tmp_path / "a/cat.PNG", tmp_path / "b/cat.jpg")
    found = masks(tmp_path / "*" / "cat.*", tmp_path / "out")
    assert sorted(found) == ["a/cat.PNG.mask.png", "a/cat.jpg.mask.png", "b/cat.mask.png"]


def test_patterns_that_match_nothing_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"--predict=.*/\*\.jpg: matches no file; must be a glob, or a folder"):
        photograph_files.find_photographs(str(tmp_path / "*.jpg"))
    (tmp_path / "sub").mkdir()
    with pytest.raises(DataError, match=r"--predict=.*: holds no file ending in \.jpg .*, nor do its subfolders$"):
        photograph_files.find_photographs(str(tmp_path))


def test_skip_existing_leaves_out_photographs_with_all_outputs(tmp_path):
    save(*(tmp_path / "in" / f"{i}.png" for i in range(4)))
    out = tmp_path / "out"
    assert len(masks(tmp_path / "in", out)) == 4
    again = plan(tmp_path / "in", out)
    assert (len(again.photographs), again.skipped) == (4, 0)
    (out / "1.overlay.jpg").unlink()
    save(tmp_path / "in" / "sub" / "new.png")
    resumed = plan(tmp_path / "in", out, skip_existing=True)
    assert [each.file.name for each in resumed.photographs] == ["1.png", "new.png"]
    assert resumed.skipped == 3
    cutouts = plan(tmp_path / "in", out, cutout=True, skip_existing=True)
    assert (len(cutouts.photographs), cutouts.skipped) == (5, 0)
    carry_out(cutouts)
    assert plan(tmp_path / "in", out, cutout=True, skip_existing=True).photographs == ()
    with Image.open(out / "2.mask.png") as mask:
        mask.convert("L").save(out / "2.mask.png")  # not as petseg wrote it
    with pytest.raises(WorkDirectoryError, match=r"2\.mask\.png would be overwritten, and was not written by petseg"):
        plan(tmp_path / "in", out, skip_existing=True)


def test_outputs_of_similar_names_do_not_collide(tmp_path, caplog):
    names = ["Cat.jpg", "a.jpg", "a.jpg.png", "a.png", "cat.jpg", "cat.png", "dog.png"]
    save(*(tmp_path / "in" / name for name in names))
    with caplog.at_level(logging.WARNING, "petseg"):
        found = masks(tmp_path / "in", tmp_path / "out")
    assert len({name.lower() for name in found}) == 7
    assert len({path.name.lower() for path in (tmp_path / "out").iterdir()}) == 14
    assert found[-1] == "dog.mask.png"
    assert "6 photographs share a name" in caplog.text or "5 photographs share a name" in caplog.text
    assert "cat.png -> cat.png.mask.png" in caplog.text


def test_files_of_the_user_are_not_overwritten(tmp_path):
    save(tmp_path / "cat.jpg")
    Image.new("L", (9, 6)).save(tmp_path / "cat.mask.png")
    with pytest.raises(WorkDirectoryError, match=r"cat\.mask\.png would be overwritten.*must be another folder"):
        plan(tmp_path / "cat.jpg", tmp_path)


def test_own_outputs_are_replaced_and_never_taken_for_photographs(tmp_path, caplog):
    save(tmp_path / "cat.jpg")
    for pattern in (tmp_path, tmp_path, tmp_path / "*"):
        with caplog.at_level(logging.INFO, "petseg"):
            assert masks(pattern, tmp_path, cutout=True) == ["cat.mask.png"]
        written = {file.name for file in tmp_path.iterdir()}
        assert written == {"cat.jpg", "cat.mask.png", "cat.overlay.jpg", "cat.cutout.png"}
    assert "3 files that petseg wrote are not photographs: skipped" in caplog.text
    with pytest.raises(DataError, match="matches only masks and overlays that petseg wrote"):
        photograph_files.find_photographs(str(tmp_path / "*.mask.png"))


def test_files_and_folders_with_brackets_in_their_names_are_found(tmp_path):
    save(*(tmp_path / "in" / name for name in ("cat[1].jpg", "cat1.jpg", "[ab]/dog.jpg", "a/dog.jpg", "x[2].png")))
    out = tmp_path / "out"
    assert masks(tmp_path / "in" / "cat[1].jpg", out) == ["cat[1].mask.png"]
    assert masks(tmp_path / "in" / "[ab]" / "*.jpg", out) == ["dog.mask.png"]
    assert masks(tmp_path / "in" / "x[2].*", out) == ["x[2].mask.png"]
    assert masks(tmp_path / "in" / "cat[0-9].jpg", out) == ["cat1.mask.png"]
    assert masks(tmp_path / "in" / "[!b]" / "*", out) == ["a/dog.mask.png"]


def test_files_left_out_of_a_folder_are_logged(tmp_path, caplog):
    for name in ("a.JFIF", "b.avif", "c.jp2", "d.pgm", "e.jpg"):
        format = {".JFIF": "JPEG", ".jpg": "JPEG"}.get(name[1:])
        (tmp_path / "in" / "sub").mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 6)).save(tmp_path / "in" / name, format)
    for name in ("f.eps", "sub/notes.txt", ".hidden.eps"):
        (tmp_path / "in" / name).write_text("no picture that Pillow reads")
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    with caplog.at_level(logging.WARNING, "petseg"):
        assert masks(tmp_path / "in", tmp_path / "out") == [f"{name}.mask.png" for name in "abcde"]
    files, folders = caplog.messages
    assert "2 files are left out" in files
    assert files.endswith(": f.eps, sub/notes.txt")
    assert folders.endswith(": link")
    for i in range(20):
        (tmp_path / "in" / f"{i:02}.eps").write_text("")
    caplog.clear()
    masks(tmp_path / "in", tmp_path / "out")
    assert "22 files are left out" in caplog.messages[0]
    assert caplog.messages[0].endswith("07.eps and 14 more")


def test_names_that_are_not_utf8_work(tmp_path):
    save(tmp_path / "in" / os.fsdecode(b"caf\xe9.png"))
    assert masks(tmp_path / "in", tmp_path / "out") == [os.fsdecode(b"caf\xe9.mask.png")]


def test_each_page_of_a_stack_is_a_photograph_where_pages_were_examples(tmp_path):
    save(tmp_path / "in" / "a.png")
    pages = [Image.new("RGB", (9, 6), color) for color in ("red", "green", "blue")]
    pages[0].save(tmp_path / "in" / "scan.tif", save_all=True, append_images=pages[1:])
    found = Plan.make(str(tmp_path / "in"), str(tmp_path / "out"), Outputs(PETS), pages=True)
    names = [file.name for file in carry_out(found)]
    assert names == ["a.mask.png", "scan#1.mask.png", "scan#2.mask.png", "scan#3.mask.png"]
    assert [photograph.page for photograph in found.photographs] == [None, 0, 1, 2]
    assert len(plan(tmp_path / "in", tmp_path / "out").photographs) == 2
    save(tmp_path / "in" / "scan#1.png", tmp_path / "in" / "scan#2.tif")  # named as the outputs of two pages
    found = Plan.make(str(tmp_path / "in"), str(tmp_path / "other"), Outputs(PETS), pages=True)
    assert len({file.name for file in carry_out(found)}) == 6
