"""Pixels of rare classes, on which crops are centred."""

import numpy as np
import pytest
import tensorflow as tf

from petseg.classes import IGNORED
from petseg.data.crop_focus import CropFocus, rare_classes
from petseg.data.examples import BatchPosition


def pixels(masks, rare, *, share=1.0, step=0, positions=None, batch_size=64, seed=0):
    positions = np.arange(len(masks)) if positions is None else np.asarray(positions)
    at = BatchPosition(tf.constant(step, tf.int64), tf.constant(positions, tf.int64), batch_size, seed)
    found, rows, columns = CropFocus(share, rare).pixels(tf.constant(masks), at)
    return found.numpy(), rows.numpy(), columns.numpy()


def mask_of(counts, shape=(6, 8)):
    """A mask with some pixels of each class at places of their own, and class 0 elsewhere."""
    mask = np.zeros(shape, np.uint8).ravel()
    where = iter(np.random.default_rng(3).permutation(mask.size))
    for label, count in counts.items():
        mask[[next(where) for _ in range(count)]] = label
    return mask.reshape(*shape, 1)


@pytest.mark.parametrize(
    ("counts", "rare"),
    [
        ({0: 60, 1: 30, 2: 10}, (1, 2)),
        ({0: 60, 1: 39, 2: 1}, (2,)),
        ({0: 90, 2: 10}, (1, 2)),  # the masks may be a sample, and others show class 1
        ({0: 10, 1: 10, IGNORED: 80}, (0, 1, 2)),  # none below the mean
        ({1: 5, IGNORED: 95}, (0, 1, 2)),
    ],
)
def test_classes_below_the_mean_number_of_pixels_are_rare(counts, rare):
    mask = np.concatenate([np.full(count, label, np.uint8) for label, count in counts.items()]).reshape(1, 10, 10, 1)
    assert rare_classes(iter([mask[:, :4], mask[:, 4:]]), 3) == rare


def test_a_class_is_drawn_uniformly_from_the_rare_ones_in_the_mask_and_then_one_of_its_pixels():
    mask = mask_of({1: 12, 2: 3, 3: 1, IGNORED: 5})
    labels, places = [], []
    for step in range(60):
        found, rows, columns = pixels(np.repeat(mask[None], 64, 0), (2, 3, 7), step=step)
        assert found.all()
        labels += list(mask[rows, columns, 0])
        places += list(zip(rows, columns, strict=True))
    assert set(labels) == {2, 3}  # class 1 is not rare, class 7 not in the mask
    assert np.mean(np.equal(labels, 3)) == pytest.approx(0.5, abs=0.03)
    counts = [places.count(place) for place in set(places) if mask[(*place, 0)] == 2]
    assert len(counts) == 3
    assert max(counts) < 1.3 * min(counts)


def test_a_share_of_the_crops_is_focused_where_the_mask_has_a_rare_class():
    masks = np.repeat(mask_of({1: 12, 2: 3})[None], 64, 0)
    masks[::2][masks[::2] == 2] = IGNORED
    found = np.mean([pixels(masks, (2,), share=0.3, step=step)[0] for step in range(100)], axis=0)
    assert (found[::2] == 0).all()
    assert np.mean(found[1::2]) == pytest.approx(0.3, abs=0.03)


def test_pixels_are_functions_of_seed_step_and_position():
    masks = np.repeat(mask_of({1: 12, 2: 9})[None], 16, 0)
    whole = pixels(masks, (1, 2), share=0.5, step=4, batch_size=16)
    part = pixels(masks[:3], (1, 2), share=0.5, step=4, batch_size=16, positions=[9, 2, 14])
    for every, some in zip(whole, part, strict=True):
        np.testing.assert_array_equal(every[[9, 2, 14]], some)
    for other in ({"step": 5}, {"step": 4, "seed": 1}):
        assert not np.array_equal(whole[1], pixels(masks, (1, 2), share=0.5, batch_size=16, **other)[1])


def test_every_row_of_a_mask_with_more_pixels_than_float32_counts_can_be_drawn():
    mask = np.ones((1, 4200, 4200, 1), np.uint8)
    _, rows, columns = zip(*[pixels(mask, (1,), step=step, batch_size=1) for step in range(12)], strict=True)
    for drawn in (rows, columns):
        assert np.min(drawn) < 1400
        assert np.max(drawn) > 2800
