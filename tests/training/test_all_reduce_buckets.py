"""The all-reduce in parts that start during the backward pass (--all_reduce_bucket)."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import random_examples
from trainers import make_trainer

EXAMPLES = random_examples(16)
OPTIONS = {"examples": EXAMPLES, "optimizer": "adam", "train_encoder": True, "decoder": "light"}
OPTIONS |= {"sync_batch_norm": False, "batch_size": 8}
BUCKET = 0.04  # MB


def trained(number, bucket, tmp_path=None):
    """The weights after three steps, and the names and values of a checkpoint's variables."""
    trainer, _, batches = make_trainer(number, **OPTIONS, all_reduce_bucket=bucket)
    trainer.run(batches, 3)
    path = tf.train.Checkpoint(**trainer.state()).write(str(tmp_path / f"{number}-{bucket}"))
    reader = tf.train.load_checkpoint(path)
    stored = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "GRAPH" not in name}
    return list(trainer.weights().values()), stored


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_parts_change_neither_weights_nor_checkpoints(number, tmp_path):
    (whole, stored), (parts, stored_of_parts) = (trained(number, size, tmp_path) for size in (0, BUCKET))
    for value, same in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(same, value)
    assert stored.keys() == stored_of_parts.keys()
    for name, value in stored.items():
        tolerance = 1e-6 if name.startswith("totals/") else 0  # norms of gradients and updates are measured
        np.testing.assert_allclose(stored_of_parts[name], value, rtol=tolerance, err_msg=name)


@pytest.mark.slow
def test_the_first_part_does_not_wait_for_the_last_gradients():
    counts = {size: gradients_before_each_part(size) for size in (0, BUCKET)}
    assert len(counts[0]) == 1
    assert len(counts[BUCKET]) > 2
    assert counts[BUCKET] == sorted(counts[BUCKET])
    assert counts[BUCKET][0] < 0.5 * counts[0][0]
    assert counts[BUCKET][-1] == counts[0][0]


def gradients_before_each_part(bucket):
    """For each all-reduce of a replica, in order, the number of kernel gradients that it waits for."""
    trainer, _, batches = make_trainer(2, **OPTIONS, all_reduce_bucket=bucket)
    library = trainer.loop.graph(batches).as_graph_def().library
    (body,) = (
        {node.name: node for node in function.node_def}
        for function in library.function
        if any(node.op.startswith("CollectiveReduce") for node in function.node_def)
    )
    waits = []
    for name, node in body.items():
        if node.op.startswith("CollectiveReduce"):
            seen, waiting = set(), [name]
            while waiting:
                current = waiting.pop().removeprefix("^").split(":")[0]
                if current in body and current not in seen:
                    seen.add(current)
                    waiting += body[current].input
            waits.append(sum("Backprop" in body[each].op and "Filter" in body[each].op for each in seen))
    return sorted(waits)[::2]  # of one of the two replicas
