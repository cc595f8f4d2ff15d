"""Masks and weights from several annotators (Lampert, Stumpf and Gançarski 2016): the majority, and how many agree.

    python examples/annotator_agreement.py mydata
    python train.py --dataset=folder --data_dir=mydata --weight_files='weights/{split}/{name}.png'

mydata/annotators/ holds a folder for each annotator with masks such as train/0001.png, of one size and in class ids.
Writes mydata/masks/train/0001.png and mydata/weights/train/0001.png, 255 where all agree.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from petseg.data import picture_files

IGNORED = 255


def combined(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The majority's classes and the share of the annotators that agree, from masks uint8 [annotators, H, W].

    An annotator who ignores a pixel (255) has no vote; of classes with as many votes, the smallest id wins.
    """
    classes = np.setdiff1d(masks, [IGNORED])
    votes = np.stack([(masks == each).sum(axis=0) for each in classes])
    winner = np.where(votes.any(axis=0), classes[votes.argmax(axis=0)], IGNORED)
    return winner.astype(np.uint8), votes.max(axis=0) / len(masks)


def main(folder: Path) -> None:
    """Combines the masks that all annotators have drawn."""
    annotators = sorted(path for path in (folder / "annotators").iterdir() if path.is_dir())
    names = [path.relative_to(annotators[0]) for path in sorted(annotators[0].rglob("*.png"))]
    for name in names:
        masks = np.stack([picture_files.read(annotator / name).pixels[..., 0] for annotator in annotators])
        mask, agreement = combined(masks)
        for kind, pixels in (("masks", mask), ("weights", np.round(255 * agreement).astype(np.uint8))):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / name)
    print(f"{folder}: {len(names)} masks of {len(annotators)} annotators combined")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
