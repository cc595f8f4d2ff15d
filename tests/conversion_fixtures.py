"""Fixtures for tests of annotations that are converted to masks."""

import numpy as np
import pytest
from PIL import Image

from petseg.data.convert import __main__ as conversion


@pytest.fixture
def annotations(tmp_path):
    """Folder for annotations that are not masks."""
    return tmp_path / "source"


@pytest.fixture
def convert(annotations, tmp_path, capsys):
    """Converts annotations into the folder `made`."""

    def convert_source(name, source=None, **options):
        """Masks by their paths below the written folder's masks/, and what was printed."""
        target = tmp_path / "made"
        conversion.main(
            conversion.ConversionConfig(from_=name, source=str(source or annotations), to=str(target), **options)
        )
        masks = {
            file.relative_to(target / "masks").as_posix(): np.asarray(Image.open(file))
            for file in sorted((target / "masks").rglob("*.png"))
        }
        return masks, capsys.readouterr().out

    return convert_source
