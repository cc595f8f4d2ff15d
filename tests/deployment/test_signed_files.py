import io

import numpy as np
import pytest
from PIL import Image

from petseg.deployment.signed_files import is_signed, signed


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_signature_holds_until_an_image_is_changed(kind, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    plain, file = io.BytesIO(), tmp_path / "picture"
    Image.fromarray(image).save(plain, kind)
    file.write_bytes(plain.getvalue())
    assert not is_signed(file)
    file.write_bytes(signed(plain.getvalue()))
    assert is_signed(file)
    opened, original = Image.open(file), Image.open(plain)
    opened.verify()  # the comment is one by the format's rules
    np.testing.assert_array_equal(Image.open(file), original)
    for place in (30, len(plain.getvalue()) // 2):
        data = bytearray(signed(plain.getvalue()))
        data[place + 100] ^= 1
        file.write_bytes(data)
        assert not is_signed(file)
    Image.fromarray(image).save(file, kind, comment=b"petseg\0")
    assert not is_signed(file)


def test_files_that_are_no_images_are_not_signed(tmp_path):
    for data in (b"", b"petseg\0", b"\xff\xd8petseg\0", b"\x89PNG\r\n\x1a\npetseg\0"):
        (tmp_path / "file").write_bytes(data)
        assert not is_signed(tmp_path / "file")
