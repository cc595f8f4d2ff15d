"""Images and masks in one zip file, which is never unpacked: images/train/0001.jpg, masks/train/0001.png, ...

python train.py --dataset=examples/zip_data.py:source --data_dir=pets.zip --classes=classes.json
"""

import hashlib
import zipfile
from pathlib import PurePosixPath

from petseg.errors import DataError


class Zip:
    """The pairs of a split; petseg decodes the files."""

    def __init__(self, path: str, split: str):
        self._file = zipfile.ZipFile(path)
        checksums = {member.filename: member.CRC for member in self._file.infolist() if not member.is_dir()}
        masks = {PurePosixPath(name).stem: name for name in checksums if name.startswith(f"masks/{split}/")}
        self._images = sorted(name for name in checksums if name.startswith(f"images/{split}/"))
        self._masks = [masks.get(PurePosixPath(name).stem) for name in self._images]
        if not self._images or None in self._masks:
            raise DataError(
                f"{path}: images/{split}/ must hold images, and masks/{split}/ a mask of the same name each"
            )
        used = [(name, checksums[name]) for name in (*self._images, *self._masks)]
        self.fingerprint = hashlib.sha256(repr(used).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> dict:
        image, mask = self._images[i], self._masks[i]
        return {"image": self._file.read(image), "mask": self._file.read(mask), "name": PurePosixPath(image).name}


def source(data_dir: str, split: str) -> Zip:
    """The pairs of a split in the zip file --data_dir."""
    return Zip(data_dir, split)
