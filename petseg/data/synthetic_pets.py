"""`synthetic_pets`: a TFDS data set of drawn cats and dogs, so that petseg runs where nothing can be downloaded.

It has the features and the trimap values of `oxford_iiit_pet`. The same drawings as folders of images and masks, as an
example of your own data set: python -m petseg.data.synthetic_pets --write=DIR.
"""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from petseg.config import command_line
from petseg.data.drawings import animal_drawing, drawn_folders
from petseg.runtime.progress_bars import progress_bar

logger = logging.getLogger(__name__)


class SyntheticPets(tfds.core.GeneratorBasedBuilder):
    """Drawn cats and dogs with trimaps."""

    VERSION = tfds.core.Version("2.0.0")

    def __init__(self, *, num_train: int = 1000, num_test: int = 200, seed: int = 0, **kwargs: Any):
        self._sizes, self._seed = {"train": num_train, "test": num_test}, seed
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=animal_drawing.SPECIES),
            "species": tfds.features.ClassLabel(names=animal_drawing.SPECIES),
            "file_name": tfds.features.Text(),
            "segmentation_mask": tfds.features.Image(shape=(None, None, 1), use_colormap=True),
            "head_bbox": tfds.features.BBoxFeature(),
        }
        return tfds.core.DatasetInfo(
            builder=self, description=__doc__, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(number, split) for number, split in enumerate(self._sizes)}

    def _generate_examples(self, number: int, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in progress_bar(range(self._sizes[split]), logger, what=f"drawing {split}", unit="images"):
            drawing = animal_drawing.draw(np.random.default_rng([self._seed, number, i]))
            example = {
                "image": drawing.image,
                "label": drawing.species,
                "species": drawing.species,
                "file_name": f"{animal_drawing.SPECIES[drawing.species].lower()}_{split}_{i:04d}.jpg",
                "segmentation_mask": drawing.trimap[..., None],
                "head_bbox": tfds.features.BBox(0.0, 0.0, 0.0, 0.0),
            }
            yield i, example


if __name__ == "__main__":
    command_line.run(drawn_folders.write, drawn_folders.WriteConfig, __doc__)
