"""Batches addressed by step.

The input has no state of its own. Which examples make the batch of a step is a function of (seed, step) alone:
`example_ids` computes any batch of any epoch directly, so a run resumes at any step at no cost, and the order is the
same however many replicas share it.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from petseg.data import service_client, unusable_examples
from petseg.data.decoding import TENSOR_ALIGNMENT, Examples, Gather
from petseg.data.example_order import example_ids, steps_per_epoch, substitute_ids
from petseg.data.on_demand import Fetch
from petseg.data.records.record_files import UNREADABLE
from petseg.data.unusable_examples import Skipped
from petseg.errors import ConfigError, DataError, one_line
from petseg.runtime import autotuning

Batch = dict[str, tf.Tensor]
PARALLEL_BATCHES, PREFETCHED_BATCHES = 2, 2


def check_divides(strategy: tf.distribute.Strategy, batch_size: int) -> None:
    """Raises ConfigError if the replicas cannot share a batch evenly."""
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
    skipped: Skipped | None = None,
    order_version: int | None = None,
) -> Any:
    """The global batches of steps `first_step` to `last_step` - 1, dealt to the replicas of a strategy.

    Each replica gets a dictionary: `image` uint8 [b, H, W, 3], `mask` uint8 [b, H, W, 1], `example_id` int64 [b] and
    `position` int64 [b], the place in the global batch, where b = batch_size / replicas; where examples are decoded on
    demand, also `last` bool [b]: whether no other batch can follow. Processes that listen at `addresses` make them;
    this one does where there are none. `skipped` is told which examples others took the place of. `order_version` is
    the `version` of `example_order.example_ids`.

    Returns:
      a distributed data set; each of its elements is the batch of one step.

    Raises:
      ConfigError: if the replicas do not divide the batch.
      DataError: if the split does not fill one.
    """
    check_divides(strategy, batch_size)
    return strategy.distribute_datasets_from_function(
        lambda context: training_batches_of_host(
            context,
            examples,
            batch_size=batch_size,
            seed=seed,
            first_step=first_step,
            last_step=last_step,
            addresses=addresses,
            skipped=skipped,
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
    skipped: Skipped | None = None,
    order_version: int | None = None,
) -> tf.data.Dataset:
    """What one host reads of the global batches: the parts of its own replicas, one after the other, step by step.

    Raises:
      DataError: if the split does not fill a batch.
    """
    local = context.num_replicas_in_sync // context.num_input_pipelines
    size = batch_size // context.num_replicas_in_sync
    steps_per_epoch(len(examples), batch_size)
    part = _part_of_batch(examples, anywhere=bool(addresses), order_version=order_version)

    @tf.autograph.experimental.do_not_convert  # which would take longer than tracing
    def batch(element: tf.Tensor) -> Batch:
        step, replica = element // local, context.input_pipeline_id * local + element % local
        positions = replica * size + tf.range(size, dtype=tf.int64)
        return part(step, positions, batch_size=batch_size, seed=seed)

    first, last = first_step * local, last_step * local
    if addresses:
        parts = service_client.made_elsewhere(addresses, first, last, batch)
    else:
        parts = tf.data.Dataset.range(first, last).map(batch, PARALLEL_BATCHES)
    if examples.on_demand is not None:
        parts = unusable_examples.ending_in_time(parts, local, Skipped() if skipped is None else skipped)
    return _in_order(parts)


def part_of_batch(
    examples: Examples,
    step: tf.Tensor,
    positions: tf.Tensor,
    *,
    batch_size: int,
    seed: int,
    order_version: int | None = None,
) -> Batch:
    """What stands at some positions, int64 [K], of the batch of a step: what a replica is given that has these.

    Also `usable` bool [K], and `skipped`, where examples are decoded on demand.
    """
    part = _part_of_batch(examples, anywhere=False, order_version=order_version)
    return part(step, positions, batch_size=batch_size, seed=seed)


def _part_of_batch(examples: Examples, *, anywhere: bool, order_version: int | None) -> Callable[..., Batch]:
    """What makes a part of a batch, as a graph of this process or for any."""
    order = functools.partial(example_ids, num_examples=len(examples), version=order_version)
    if examples.on_demand is not None:
        on_demand = examples.on_demand
        fetch = on_demand.fetch_anywhere if anywhere and on_demand.fetch_anywhere else on_demand.fetch
        return functools.partial(_part_on_demand, examples, order, fetch)
    gather = examples.gather_anywhere if anywhere and examples.gather_anywhere else _gather(examples)
    return functools.partial(_part_at_hand, examples, order, gather)


def _part_at_hand(
    examples: Examples,
    order: Callable[..., tf.Tensor],
    gather: Gather,
    step: tf.Tensor,
    positions: tf.Tensor,
    *,
    batch_size: int,
    seed: int,
) -> Batch:
    ids = order(step, positions, batch_size=batch_size, seed=seed)
    image, mask = _cut(examples, ids, *gather(ids), step, positions, batch_size=batch_size, seed=seed)
    return {"image": image, "mask": mask, "example_id": ids, "position": positions}


def _part_on_demand(
    examples: Examples,
    order: Callable[..., tf.Tensor],
    fetch: Fetch,
    step: tf.Tensor,
    positions: tf.Tensor,
    *,
    batch_size: int,
    seed: int,
) -> Batch:
    assert examples.on_demand is not None

    def substitutes(attempt: tf.Tensor) -> tf.Tensor:
        sizes = {"num_examples": len(examples), "batch_size": batch_size}
        return substitute_ids(step, positions, attempt, **sizes, seed=seed)

    drawn = unusable_examples.draw(
        fetch,
        order(step, positions, batch_size=batch_size, seed=seed),
        substitutes if examples.on_demand.skips else None,
    )
    image, mask = _cut(
        examples, drawn.ids, drawn.images, drawn.masks, step, positions, batch_size=batch_size, seed=seed
    )
    return {
        "image": image,
        "mask": mask,
        "example_id": drawn.ids,
        "position": positions,
        "usable": drawn.usable,
        "skipped": drawn.skipped,
    }


def _cut(
    examples: Examples,
    ids: tf.Tensor,
    image: tf.Tensor,
    mask: tf.Tensor,
    step: tf.Tensor,
    positions: tf.Tensor,
    *,
    batch_size: int,
    seed: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The random parts that examples are in a step, where they are not what was decoded."""
    if examples.parts is None:
        return image, mask
    return examples.parts.cut(image, mask, ids, step=step, positions=positions, batch_size=batch_size, seed=seed)


def distributed_evaluation_batches(
    strategy: tf.distribute.Strategy, examples: Examples, *, batch_size: int
) -> tuple[Any, int]:
    """Every example once, in order; the last batch is filled up with examples that are marked as not valid.

    As few batches as there can be, all of one size, and that as small as it can be: little is filled up.

    Each replica gets a dictionary: `image` uint8 [b, H, W, 3], `mask` uint8 [b, H, W, 1], `example_id` int64 [b] and
    `valid` bool [b].

    Args:
      strategy: the strategy whose replicas share a batch.
      examples: the examples of the split.
      batch_size: largest number of examples in a batch over all replicas; rounded up to a multiple of these.

    Returns:
      a distributed data set, and the number of its elements.
    """
    replicas = strategy.num_replicas_in_sync
    size = evaluation_batch_of_replica(len(examples), batch_size, replicas)
    count = math.ceil(len(examples) / (size * replicas))
    gather = _gather(examples)

    def dataset_of_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
        local = replicas // context.num_input_pipelines

        @tf.autograph.experimental.do_not_convert
        def batch(element: tf.Tensor) -> Batch:
            chunk = element // local * replicas + context.input_pipeline_id * local + element % local
            ids = chunk * size + tf.range(size, dtype=tf.int64)
            valid = ids < len(examples)
            ids = tf.where(valid, ids, 0)
            image, mask = gather(ids)
            return {"image": image, "mask": mask, "example_id": ids, "valid": valid}

        return _in_order(tf.data.Dataset.range(count * local).map(batch, PARALLEL_BATCHES))

    return strategy.distribute_datasets_from_function(dataset_of_host), count


def evaluation_batch_of_replica(num_examples: int, batch_size: int, replicas: int) -> int:
    """Examples that each replica has of each batch of an evaluation."""
    return math.ceil(num_examples / math.ceil(num_examples / batch_size) / replicas)


@contextlib.contextmanager
def naming_lost_files(*splits: Examples) -> Iterator[None]:
    """Turns TensorFlow's report of a file that cannot be read, or of an example, into one that says which.

    Raises:
      DataError: if the block failed because files of the examples were changed or removed, or of one of the examples.
    """
    try:
        yield
    except tf.errors.OpError as error:
        for examples in splits:
            examples.check()
            if examples.on_demand is not None:
                examples.on_demand.unusable_in(error)
        if isinstance(error, tf.errors.DataLossError) or UNREADABLE in str(error):
            raise DataError(f"a file of examples cannot be read: {one_line(error)}") from error
        raise


def _gather(examples: Examples) -> Gather:
    """Positions -> images and masks, as a graph of this process."""
    if examples.gather is not None:
        return examples.gather
    images, masks = _without_copy(examples.images), _without_copy(examples.masks)
    return lambda ids: (tf.gather(images, ids), tf.gather(masks, ids))


def _without_copy(array: np.ndarray) -> tf.Tensor:
    """A tensor on the host that shares the memory of an array, where TensorFlow can compute with it as it lies."""
    if array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % TENSOR_ALIGNMENT == 0:
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    with tf.device("cpu:0"):
        return tf.convert_to_tensor(array)


def _in_order(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = autotuning.off()
    options.deterministic = True
    options.experimental_optimization.apply_default_optimizations = False  # rewriting would copy all examples
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.prefetch(PREFETCHED_BATCHES).with_options(options)
