"""Folders of small pictures and masks for tests."""

import numpy as np
from PIL import Image

from petseg.config import DataConfig

SIZE = (12, 16)


def picture(height=SIZE[0], width=SIZE[1], seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def mask(*values, height=SIZE[0], width=SIZE[1]):
    """uint8 [H, W] in columns of the values, in turn."""
    return np.tile(np.array(values or (0, 1, 2), np.uint8), width)[None, :width].repeat(height, 0)


def save(path, content):
    """Writes an array as a picture in the format of the name's ending, bytes as they are, or an image of Pillow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        (content if isinstance(content, Image.Image) else Image.fromarray(content)).save(path)


def write(root, files):
    """Writes files by their paths; None stands for an image or a mask, depending on the folder's name."""
    for i, (path, content) in enumerate(files.items()):
        if content is None:
            content = mask() if "mask" in path or "annot" in path else picture(seed=i)
        save(root / path, content)
    return root


def pairs(*names, folder=""):
    """Files of pairs in the default layout."""
    return {
        f"{kind}/{folder}{name}.{end}": None for name in names for kind, end in (("images", "jpg"), ("masks", "png"))
    }


def config(root, **values):
    return DataConfig(dataset="folder", **{"data_dir": str(root), "cache_dir": str(root.parent / "cache"), **values})
