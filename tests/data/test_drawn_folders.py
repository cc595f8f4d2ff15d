import numpy as np
import pytest
from PIL import Image

from petseg.config import DataConfig
from petseg.data.drawings import drawn_folders
from petseg.data.drawings.drawn_folders import CODINGS, WriteConfig
from petseg.data.folders import folder_files, folder_layout
from petseg.data.folders.mask_values import MaskCoding
from petseg.errors import ConfigError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn") / "mine"
    drawn_folders.write(WriteConfig(str(root), num_train=2, num_test=1))
    return root


@pytest.mark.parametrize("masks", CODINGS)
def test_each_coding_is_a_data_set_with_its_classes_file(root, masks):
    file, classes = CODINGS[masks]
    flags = {"image_files": "images/{split}/*.jpg", "mask_files": masks + "/{split}/{name}.png"}
    config = DataConfig(dataset="folder", data_dir=str(root), classes=str(root / file), **flags)
    layout = folder_layout.scan_folder(config)
    assert {split: len(members) for split, members in layout.splits.items()} == {"train": 2, "test": 1}
    assert folder_files.read_classes(config) == classes
    pairs = [pair for _, pair in folder_files.read_pairs(layout, MaskCoding(classes))]
    assert not [fault for pair in pairs for fault in pair.faults]
    assert all(len(np.unique(pair.ids)) >= 2 for pair in pairs)


def test_the_layout_needs_no_flags(root):
    config = DataConfig(dataset="folder", data_dir=str(root))
    assert not folder_layout.scan_folder(config).faults
    assert folder_files.read_classes(config).names == ("background", "cat", "dog")


def test_an_animal_of_a_species_has_one_class_in_all_codings(root):
    for file in root.glob("images/*/*.jpg"):
        index, rgb, zero_and_255, trimap = (
            np.asarray(Image.open(root / masks / file.parent.name / f"{file.stem}.png")) for masks in CODINGS
        )
        assert set(np.unique(index)) == {0, 1 if file.stem.endswith("cat") else 2}
        np.testing.assert_array_equal((rgb != drawn_folders.COLORS[0]).any(-1), index > 0)
        np.testing.assert_array_equal(zero_and_255 == 255, index > 0)
        assert (index[trimap == 1] > 0).all()


def test_a_folder_with_files_is_refused(root):
    with pytest.raises(ConfigError, match=r"^--write=.*: must be a folder that does not exist, or is empty"):
        drawn_folders.write(WriteConfig(str(root)))
