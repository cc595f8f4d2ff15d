"""Gradients that travel in float16: how far they are from those in float32, and what an overflow does."""

import numpy as np
import pytest
from conftest import make_trainer, random_examples


def after_a_step(dtype):
    """A trainer of two replicas after a step, its batches, and the gradients that updated the weights."""
    trainer, _, batches = make_trainer(
        2, examples=random_examples(8), batch_size=8, sync_batch_norm=False, all_reduce_dtype=dtype
    )
    trainer.run(batches, 1)
    slots = [variable.numpy() for variable in trainer.optimizer.variables if "momentum" in variable.path]
    return trainer, batches, np.concatenate([slot.reshape(-1) for slot in slots])


@pytest.mark.slow
def test_gradients_in_float16_are_rounded_and_an_overflow_on_the_way_skips_the_step():
    *_, exact = after_a_step("float32")
    trainer, batches, rounded = after_a_step("float16")
    assert 1e-6 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 5e-4  # 2 ** -11 is half a unit
    assert trainer.pop_measurements().scalars["loss_scale"] == 1024.0

    before = trainer.weights()
    trainer.loss_scale._scale.assign(2.0**30)  # with which no sum of a replica overflows, but what travels does
    trainer.run(batches, 1)
    scalars = trainer.pop_measurements().scalars
    assert (scalars["skipped_steps"], scalars["loss_scale"]) == (1, 2.0**29)
    assert trainer.nonfinite_replicas() == []
    for name, weight in trainer.weights().items():
        np.testing.assert_array_equal(weight, before[name])
