"""Stateless input pipeline: the training batches of steps, and evaluation batches, distributed over replicas.

The examples of a step are a function of (seed, step), `example_ids`. So a run resumes at any step at no cost, and the
order does not depend on the number of replicas.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from petseg.data import prefetching, service_client
from petseg.data.bad_example_log import BadExampleLog
from petseg.data.example_order import example_ids, steps_per_epoch
from petseg.data.examples import BatchPosition, Examples
from petseg.data.record_files import UNREADABLE
from petseg.errors import ConfigError, DataError, one_line
from petseg.runtime import autotuning

Batch = dict[str, tf.Tensor]


def check_batch_divides(strategy: tf.distribute.Strategy, batch_size: int) -> None:
    """Raises ConfigError if the batch size is not a multiple of the number of replicas."""
    number = strategy.num_replicas_in_sync
    if batch_size % number:
        divisors = [each for each in range(1, batch_size + 1) if batch_size % each == 0]
        nearest = [max(each for each in divisors if each < number), *[each for each in divisors if each > number][:1]]
        raise ConfigError(
            f"--batch_size={batch_size}: must be a multiple of the {number} replicas; "
            f"{' or '.join(map(str, nearest))} replicas would divide it"
        )


def distributed_training_batches(
    strategy: tf.distribute.Strategy, examples: Examples, *, batch_size: int, **options: Any
) -> Any:
    """The global training batches of a range of steps, distributed over the replicas of a strategy.

    Each replica gets a dictionary: `image` uint8 or uint16 [b, H, W, C], `mask` uint8 [b, H, W, 1], `example_id` int64
    [b] and `position` int64 [b], the position in the global batch, where b = batch_size / replicas; and `weight` [b, H,
    W, 1] if there are weight maps, as in `Fetched`. Returns a distributed data set with one element per step. Raises
    ConfigError if the batch size is not a multiple of the number of replicas, and DataError if the split is smaller
    than a batch.
    """
    check_batch_divides(strategy, batch_size)
    return strategy.distribute_datasets_from_function(
        lambda context: training_batches_of_host(context, examples, batch_size=batch_size, **options)
    )


def training_batches_of_host(
    context: tf.distribute.InputContext,
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    first_step: int,
    last_step: int,
    addresses: Sequence[str] = (),
    bad_examples: BadExampleLog | None = None,
    order_version: int | None = None,
    example_bytes: int = 0,
) -> tf.data.Dataset:
    """One host's share of the global batches: for each step, the parts of its replicas one after the other.

    Args:
      example_bytes: `DataConfig.example_bytes`, by which memory bounds the batches that are kept ready.

    Raises:
      DataError: if the split is smaller than a batch.
    """
    local = context.num_replicas_in_sync // context.num_input_pipelines
    size = batch_size // context.num_replicas_in_sync
    at_once, ready = prefetching.parts_at_once(local, size, size * example_bytes)
    steps_per_epoch(len(examples), batch_size)

    @tf.autograph.experimental.do_not_convert  # conversion would take longer than tracing
    def part(element: tf.Tensor) -> Batch:
        step, replica = element // local, context.input_pipeline_id * local + element % local
        positions = replica * size + tf.range(size, dtype=tf.int64)
        at = BatchPosition(step, positions, batch_size, seed, order_version)
        return part_of_batch(examples, at, portable=bool(addresses))

    first, last = first_step * local, last_step * local
    if addresses:
        parts = service_client.remote_batches(addresses, first, last, part, wanted=ready)
    else:
        parts = tf.data.Dataset.range(first, last).map(part, at_once)
    return _finished(parts, ready, examples, bad_examples)


def part_of_batch(examples: Examples, at: BatchPosition, *, portable: bool = False) -> Batch:
    """The examples at some positions of a batch, as a graph; with `portable`, one that a data service can run.

    Returns `image`, `mask`, `weight` if there are weight maps, `example_id`, `position`; for `BadExampleLog.recorded`,
    unless the examples are `checked`, `step` and `usable`.
    """
    sizes = {"num_examples": len(examples), "batch_size": at.batch_size}
    ids = example_ids(at.step, at.positions, **sizes, seed=at.seed, version=at.order_version)
    fetched = examples.batch(ids, at, portable=portable)
    batch = {**fetched.arrays(), "example_id": ids, "position": at.positions}
    return batch if examples.checked else batch | {"step": at.step, "usable": fetched.usable}


def distributed_evaluation_batches(
    strategy: tf.distribute.Strategy,
    examples: Examples,
    *,
    batch_size: int,
    bad_examples: BadExampleLog | None = None,
    example_bytes: int = 0,
) -> tuple[Any, int]:
    """Evaluation batches: every example once, in order; the last batch is padded with examples that are not `valid`.

    First the number of batches, then their size is as small as possible, to pad little.

    Each replica gets a dictionary: `image` uint8 or uint16 [b, H, W, C], `mask` uint8 [b, H, W, 1], `example_id` int64
    [b] and `valid` bool [b]; and `weight` as in training.

    Args:
      batch_size: maximum global batch size, rounded up to a multiple of the number of replicas.

    Returns:
      a distributed data set, and the number of batches.
    """
    replicas = strategy.num_replicas_in_sync
    size = evaluation_batch_of_replica(len(examples), batch_size, replicas)
    count = math.ceil(len(examples) / (size * replicas))

    def dataset_of_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
        local = replicas // context.num_input_pipelines

        @tf.autograph.experimental.do_not_convert
        def batch(element: tf.Tensor) -> Batch:
            chunk = element // local * replicas + context.input_pipeline_id * local + element % local
            ids = chunk * size + tf.range(size, dtype=tf.int64)
            valid = ids < len(examples)
            ids = tf.where(valid, ids, 0)
            fetched = examples.fetch(ids)
            batch = {**fetched.arrays(), "example_id": ids, "valid": valid}
            return batch if examples.checked else batch | {"step": element, "usable": fetched.usable}

        at_once, ready = prefetching.parts_at_once(local, size, size * example_bytes)
        parts = tf.data.Dataset.range(count * local).map(batch, at_once)
        return _finished(parts, ready, examples, bad_examples)

    return strategy.distribute_datasets_from_function(dataset_of_host), count


def evaluation_batch_of_replica(num_examples: int, batch_size: int, replicas: int) -> int:
    """Batch size per replica of an evaluation."""
    return math.ceil(num_examples / math.ceil(num_examples / batch_size) / replicas)


@contextlib.contextmanager
def naming_lost_files(*splits: Examples) -> Iterator[None]:
    """Replaces TensorFlow's error by a DataError that names the file, if a file of examples cannot be read."""
    try:
        yield
    except tf.errors.OpError as error:
        for examples in splits:
            examples.check()
        if isinstance(error, tf.errors.DataLossError) or UNREADABLE in str(error):
            raise DataError(f"a file of examples cannot be read: {one_line(error)}") from error
        raise


def _finished(
    parts: tf.data.Dataset, ready: int, examples: Examples, bad_examples: BadExampleLog | None
) -> tf.data.Dataset:
    """Parts of batches in their order, `ready` of them prefetched, with bad examples recorded."""
    if not examples.checked:
        parts = (bad_examples or BadExampleLog()).recorded(parts)
    options = autotuning.off()
    options.deterministic = True
    options.experimental_optimization.apply_default_optimizations = False  # would copy all examples
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return parts.prefetch(ready).with_options(options)
