"""Images and texts of the demo page."""

import numpy as np

import petseg
from petseg.classes import PETS, Classes
from petseg.deployment.demo import views


def segmentation(height=6, width=8):
    """A picture that is pet for sure on its left half, and anything on its right."""
    probabilities = np.full([height, width, 3], 1 / 3, np.float32)
    probabilities[:, : width // 2] = [1, 0, 0]
    return petseg.Segmentation(np.full([height, width, 3], 9, np.uint8), probabilities, PETS)


def test_views_of_a_segmentation():
    shown = views.pictures(segmentation(), opacity=1.0)
    assert (np.asarray(shown.overlay) == PETS.palette[0]).all()
    confidence = np.asarray(shown.confidence, np.int64).sum(axis=-1)
    assert (confidence[:, :4] > 2 * confidence[:, 4:].max()).all()
    image, [(mask, name)] = shown.annotated
    assert name == "pet"
    assert (mask == 1).all()
    assert image.shape == (6, 8, 3)
    assert shown.cutout.mode == "RGBA"
    streets = Classes.from_dict({"classes": ["road", "car", "sky"]})
    found = segmentation()
    assert views.pictures(petseg.Segmentation(found.image, found.probabilities, streets), 0.5).cutout is None


def test_facts_name_shares_sizes_and_time_as_safe_html():
    text = views.facts(segmentation(), 0.123, 42, (600, 800))
    for part in ("pet 100.0%", "8 x 6 pixels (reduced from 800 x 600) in 0.12 s", "confidence of 67%", "step 42"):
        assert part in text
    assert "border" not in text
    assert "reduced" not in views.facts(segmentation(), 0.1, 1, (6, 8))
    assert "<b>" not in views.error_sentence("<b>.jpg: cannot be read")


def test_only_large_images_are_reduced():
    image = np.zeros([300, 500, 3], np.uint8)
    assert views.reduced(image, 150_000) is image
    assert views.reduced(image, 1500).shape == (30, 50, 3)
    assert views.reduced(np.zeros([1, 9000, 3], np.uint8), 100).shape[0] == 1
