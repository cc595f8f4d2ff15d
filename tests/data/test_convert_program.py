"""python -m petseg.data.convert: flags, suggested commands, and folders for which others suggest it."""

import importlib.util
import os
import shlex

import pytest
from made_annotations import SQUARE, box, coco, describe_yolo, filled, labelme, polygon, shape, write_json
from made_folders import picture, save

from petseg.config import DataConfig, command_line
from petseg.data import check
from petseg.data.check import CheckConfig, CheckOptions
from petseg.data.convert import __main__ as program, detection
from petseg.data.convert.__main__ import ConversionConfig
from petseg.data.folders import folder_layout
from petseg.errors import ConfigError, DataError


@pytest.fixture
def source(annotations):
    for i in range(6):
        save(annotations / f"train/{i}.jpg", picture(40, 48, seed=i))
        save(annotations / f"test/{i}.jpg", picture(40, 48, seed=10 + i))
    for split in ("train", "test"):
        files = [f"{i}.jpg" for i in range(6)]
        objects = [polygon(box(3 + i, 3, 30, 33), image_id=i) for i in range(6)]
        write_json(annotations / split / "_annotations.coco.json", coco(objects, files=files, height=40, width=48))
    return annotations


def run(*arguments):
    program.main(command_line.parse(["convert", *map(str, arguments)], ConversionConfig))


def test_the_documented_command_line_and_what_it_suggests(source, tmp_path, capsys):
    target = tmp_path / "made"
    run("--from=coco", source, "--to", target)
    suggested = capsys.readouterr().out.splitlines()[-2:]
    assert suggested[0] == f"  python -m petseg.data.check --dataset=folder --data_dir={target}"
    config = DataConfig(dataset="folder", data_dir=str(target))
    check.main(CheckConfig(config, CheckOptions(overlays=0)))
    assert capsys.readouterr().out.endswith("nothing is wrong\n")
    layout = folder_layout.scan_folder(config)
    assert {split: len(pairs) for split, pairs in layout.splits.items()} == {"train": 6, "test": 6}


def test_links_share_the_file(source, tmp_path):
    run("--from=coco", source, f"--to={tmp_path / 'made'}", "--link")
    assert os.path.samefile(source / "train/0.jpg", tmp_path / "made/images/train/0.jpg")


def test_what_was_converted_outlives_a_power_failure(source, tmp_path, disk_calls):
    target = tmp_path / "made"
    run("--from=coco", source, "--to", target)
    synced = {path.replace("/.unfinished", "") for call, path in disk_calls if call == "fsync"}
    assert {str(path) for path in (target, *target.rglob("*"))} <= synced


def test_folders_with_content_are_refused_and_a_killed_conversion_is_repeated(source, tmp_path):
    save(tmp_path / "made/.unfinished/images/x.jpg", b"of a process that was killed")
    run("--from=coco", source, f"--to={tmp_path / 'made'}")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["classes.json", "images", "masks"]
    with pytest.raises(ConfigError, match=r"--to=.*/made: must be a folder that does not exist, or is empty"):
        run("--from=coco", source, f"--to={tmp_path / 'made'}")


def test_invalid_flags(source, tmp_path):
    with pytest.raises(ConfigError, match=r"^--from=: must be one of coco, .*; .*/source looks like coco$"):
        run(source, "--to=x")
    with pytest.raises(ConfigError, match="nowhere: does not exist"):
        run("--from=coco", "nowhere", "--to=x")
    with pytest.raises(ConfigError, match=r"--mask_dir=.*: must be empty without --from=masks_per_class"):
        run("--from=coco", source, "--to=x", f"--mask_dir={tmp_path}")
    with pytest.raises(Exception, match="more: every argument other than one SOURCE is a flag"):
        run("--from=coco", source, "more", "--to=x")


@pytest.mark.parametrize(("name", "package"), [("coco", "pycocotools"), ("yolo", "yaml")])
def test_a_missing_package_is_named_with_its_extra(source, monkeypatch, name, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda each: None if each == package else find(each))
    with pytest.raises(
        ConfigError, match=rf"--from={name}: needs the package {package}: pip install 'petseg\[convert\]'"
    ):
        run(f"--from={name}", source, "--to=x")


@pytest.mark.parametrize(
    "layout",
    [
        ["images/a.jpg", "masks/cat/a.png"],
        ["images/a.jpg", "masks/a_cat.png", "masks/a_dog.png"],
        ["images/train/a.jpg", "masks/train/cat/a.png", "masks/train/dog/a.png"],
    ],
)
def test_a_folder_with_a_mask_for_each_class_names_the_command(annotations, layout):
    for file in layout:
        save(annotations / file, filled((0, 0, 5, 5, 255)))
    try:
        found = folder_layout.scan_folder(DataConfig(dataset="folder", data_dir=str(annotations)))
        message = str(found.faults[0])
    except DataError as error:
        message = str(error)
    command = shlex.split(message.partition(": python -m ")[2])
    assert command == ["petseg.data.convert", "--from=masks_per_class", str(annotations), f"--to={annotations}-masks"]


@pytest.mark.parametrize("name", ["coco", "labelme", "yolo"])
def test_a_folder_with_annotations_names_the_command(annotations, tmp_path, name):
    save(annotations / "images/a.jpg", picture())
    if name == "coco":
        write_json(annotations / "annotations/instances.json", coco([polygon(SQUARE)]))
    elif name == "labelme":
        write_json(annotations / "images/a.json", labelme(shape(SQUARE), imageData="A" * 200000))
    else:
        describe_yolo(annotations)
    assert detection.detected_format(annotations) == name
    with pytest.raises(DataError) as error:
        folder_layout.scan_folder(DataConfig(dataset="folder", data_dir=str(annotations)))
    command = shlex.split(str(error.value).partition(": python -m ")[2])
    assert command == ["petseg.data.convert", f"--from={name}", str(annotations), f"--to={annotations}-masks"]
    if name != "yolo":
        run(*command[1:])
        assert (tmp_path / "source-masks/masks/a.png").is_file()
