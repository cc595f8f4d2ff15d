"""Batches addressed by step.

The input has no state of its own. Which examples make the batch of a step is a function of (seed, step) alone:
`example_ids` computes any batch of any epoch directly, so a run resumes at any step at no cost, and the order is the
same however many replicas share it.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from petseg.data import service_client
from petseg.data.bad_examples import BadExampleLog
from petseg.data.example_order import example_ids, steps_per_epoch
from petseg.data.examples import BatchPosition, Examples
from petseg.data.record_files import UNREADABLE
from petseg.errors import ConfigError, DataError, one_line
from petseg.runtime import autotuning

Batch = dict[str, tf.Tensor]
PARALLEL_BATCHES, PREFETCHED_BATCHES = 2, 2


def check_batch_divides(strategy: tf.distribute.Strategy, batch_size: int) -> None:
    """Raises ConfigError if the replicas do not divide a batch evenly."""
    number = strategy.num_replicas_in_sync
    if batch_size % number:
        divisors = [each for each in range(1, batch_size + 1) if batch_size % each == 0]
        nearest = [max(each for each in divisors if each < number), *[each for each in divisors if each > number][:1]]
        raise ConfigError(
            f"--batch_size={batch_size}: must be a multiple of the {number} replicas; "
            f"{' or '.join(map(str, nearest))} would divide it"
        )


def distributed_training_batches(
    strategy: tf.distribute.Strategy,
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    first_step: int,
    last_step: int,
    addresses: Sequence[str] = (),
    bad_examples: BadExampleLog | None = None,
    order_version: int | None = None,
) -> Any:
    """The global batches of steps `first_step` to `last_step` - 1, distributed over the replicas of a strategy.

    Each replica gets a dictionary: `image` uint8 [b, H, W, 3], `mask` uint8 [b, H, W, 1], `example_id` int64 [b] and
    `position` int64 [b], the position in the global batch, where b = batch_size / replicas. Data services at
    `addresses` make the batches; this process does if there are none. Bad examples are recorded in `bad_examples`.
    `order_version` is the `version` of `example_order.example_ids`.

    Returns:
      a distributed data set; each of its elements is the batch of one step.

    Raises:
      ConfigError: if the replicas do not divide the batch.
      DataError: if the split does not fill one.
    """
    check_batch_divides(strategy, batch_size)
    return strategy.distribute_datasets_from_function(
        lambda context: training_batches_of_host(
            context,
            examples,
            batch_size=batch_size,
            seed=seed,
            first_step=first_step,
            last_step=last_step,
            addresses=addresses,
            bad_examples=bad_examples,
            order_version=order_version,
        )
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
) -> tf.data.Dataset:
    """One host's share of the global batches: the parts of its replicas, one after the other, step by step.

    Raises:
      DataError: if the split does not fill a batch.
    """
    local = context.num_replicas_in_sync // context.num_input_pipelines
    size = batch_size // context.num_replicas_in_sync
    steps_per_epoch(len(examples), batch_size)

    @tf.autograph.experimental.do_not_convert  # which would take longer than tracing
    def part(element: tf.Tensor) -> Batch:
        step, replica = element // local, context.input_pipeline_id * local + element % local
        positions = replica * size + tf.range(size, dtype=tf.int64)
        at = BatchPosition(step, positions, batch_size, seed, order_version)
        return part_of_batch(examples, at, portable=bool(addresses))

    first, last = first_step * local, last_step * local
    if addresses:
        parts = service_client.remote_batches(addresses, first, last, part)
    else:
        parts = tf.data.Dataset.range(first, last).map(part, PARALLEL_BATCHES)
    return _in_order((bad_examples or BadExampleLog()).recorded(parts))


def part_of_batch(examples: Examples, at: BatchPosition, *, portable: bool = False) -> Batch:
    """The examples at some positions of the batch of a step, as a graph; with `portable`, one for a data service.

    Returns:
      `image`, `mask`, `example_id` and `position`, and for `BadExampleLog.recorded` also `step` and `usable`.
    """
    ids = example_ids(
        at.step,
        at.positions,
        num_examples=len(examples),
        batch_size=at.batch_size,
        seed=at.seed,
        version=at.order_version,
    )
    image, mask, usable = examples.batch(ids, at, portable=portable)
    return {
        "image": image, "mask": mask, "example_id": ids, "position": at.positions, "step": at.step, "usable": usable
    }  # fmt: skip


def distributed_evaluation_batches(
    strategy: tf.distribute.Strategy,
    examples: Examples,
    *,
    batch_size: int,
    bad_examples: BadExampleLog | None = None,
) -> tuple[Any, int]:
    """Every example once, in order; the last batch is padded with examples that are marked as not valid.

    The number of batches is as small as possible, then their size: little is padded.

    Each replica gets a dictionary: `image` uint8 [b, H, W, 3], `mask` uint8 [b, H, W, 1], `example_id` int64 [b] and
    `valid` bool [b].

    Args:
      strategy: the strategy whose replicas share a batch.
      examples: the examples of the split.
      batch_size: largest number of examples in a batch over all replicas; rounded up to a multiple of these.
      bad_examples: where bad examples are recorded.

    Returns:
      a distributed data set, and the number of its elements.
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
            image, mask, usable = examples.fetch(ids)
            return {
                "image": image, "mask": mask, "example_id": ids, "valid": valid, "step": element, "usable": usable
            }  # fmt: skip

        parts = tf.data.Dataset.range(count * local).map(batch, PARALLEL_BATCHES)
        return _in_order((bad_examples or BadExampleLog()).recorded(parts))

    return strategy.distribute_datasets_from_function(dataset_of_host), count


def evaluation_batch_of_replica(num_examples: int, batch_size: int, replicas: int) -> int:
    """Number of examples of each replica in each batch of an evaluation."""
    return math.ceil(num_examples / math.ceil(num_examples / batch_size) / replicas)


@contextlib.contextmanager
def naming_lost_files(*splits: Examples) -> Iterator[None]:
    """Replaces TensorFlow's error for a file that cannot be read by one that names it.

    Raises:
      DataError: if the block failed because files of the examples were changed or removed.
    """
    try:
        yield
    except tf.errors.OpError as error:
        for examples in splits:
            examples.check()
        if isinstance(error, tf.errors.DataLossError) or UNREADABLE in str(error):
            raise DataError(f"a file of examples cannot be read: {one_line(error)}") from error
        raise


def _in_order(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = autotuning.off()
    options.deterministic = True
    options.experimental_optimization.apply_default_optimizations = False  # rewriting would copy all examples
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.prefetch(PREFETCHED_BATCHES).with_options(options)
