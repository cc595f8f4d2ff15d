"""Steps and all-reduces of one replica, of several, or of one worker of a cluster, in a process of its own."""

import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import tensorflow as tf

from petseg.benchmark import contestants
from petseg.benchmark.scaling_model import SMALL_BYTES
from petseg.config import Config
from petseg.errors import one_line
from petseg.runtime import process
from petseg.training.trainer import Trainer

REDUCE_CALLS = 10  # all-reduces alone, of which the median counts


def serve(connection: Connection, configs: Sequence[Config], steps: int) -> None:
    """Measures for another process, and tells it a dictionary for each config, in one list."""
    try:
        connection.send({"measured": measure(configs, steps)})
    except Exception as error:
        connection.send({"failed": one_line(error)})


def serve_input(connection: Connection, config: Config, steps: int) -> None:
    """Tells another process how many images per second the input of this host makes."""
    try:
        contestant = contestants.our_input(config)
        next(contestant)
        turn = contestant.send(steps)
        connection.send({"measured": turn.images / turn.seconds})
    except Exception as error:
        connection.send({"failed": one_line(error)})


def measure(configs: Sequence[Config], steps: int) -> list[dict[str, Any]]:
    """What each config takes, all on the devices of the first; see `measure_on`."""
    return measure_on(process.set_up_runtime(configs[0], configs[0].distribution).strategy, configs, steps)


def measure_on(strategy: tf.distribute.Strategy, configs: Sequence[Config], steps: int) -> list[dict[str, Any]]:
    """What each config takes under a strategy.

    Returns:
      for each: `step`, the median seconds of a step; `all_reduce` and `small`, those of its all-reduce and of a small
      one alone, 0 where there is but one replica; `bytes`, what a replica gives to the one all-reduce; `packs`, the
      collective operations that it is made of; and `small_reduces`, how many more a step has.
    """
    found = []
    for config in configs:
        trainer, batches = contestants.trainer_and_batches(config, strategy)
        trainer.run(batches, 1)
        times = trainer.run(batches, steps)
        several = strategy.num_replicas_in_sync > 1
        reduce = _compiled(strategy, trainer._reduce)
        small = _compiled(strategy, lambda: _all_reduce(tf.ones([int(SMALL_BYTES) // 4])))
        local = len(strategy.extended.worker_devices)
        operations = collective_operations(reduce.get_concrete_function().graph)
        found.append(
            {
                "step": float(np.median(times[:, 1])),
                "all_reduce": _seconds(reduce) if several else 0.0,
                "small": _seconds(small) if several else 0.0,
                "bytes": bytes_of(trainer),
                "packs": len(operations) // local,
                "small_reduces": collectives_of_a_step(trainer, batches) // local - len(operations) // local,
            }
        )
    return found


def bytes_of(trainer: Trainer) -> int:
    """What a replica gives to the one all-reduce of a step, from the sizes of its tensors."""
    parts = tf.nest.flatten(trainer.to_reduce())
    return sum(part.shape.num_elements() * part.dtype.size for part in parts)


def bytes_in_graph(trainer: Trainer, strategy: tf.distribute.Strategy) -> int:
    """The same, from the collective operations of the traced graph."""
    graph = _compiled(strategy, trainer._reduce).get_concrete_function().graph
    inputs = [operation.inputs[0] for operation in collective_operations(graph)]
    total = sum(value.shape.num_elements() * value.dtype.size for value in inputs)
    return total // len(strategy.extended.worker_devices)


def collective_operations(graph: tf.Graph) -> list[tf.Operation]:
    """The operations of a graph that sum over replicas."""
    return [operation for operation in graph.get_operations() if operation.type.startswith("CollectiveReduce")]


def collectives_of_a_step(trainer: Trainer, batches: Any) -> int:
    """The operations of a step that sum over replicas, those of all replicas of this process counted."""
    graph = trainer._loop.get_concrete_function(batches, tf.constant(1, tf.int64)).graph.as_graph_def()
    return sum(
        node.op.startswith("CollectiveReduce") for function in graph.library.function for node in function.node_def
    )


def _all_reduce(value: tf.Tensor) -> Any:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def _compiled(strategy: tf.distribute.Strategy, work: Callable[[], Any]) -> Any:
    return tf.function(lambda: strategy.run(work), autograph=False)


def _seconds(work: Callable[[], Any]) -> float:
    """Median seconds of a call that returns tensors."""
    seconds = []
    for _ in range(REDUCE_CALLS + 1):
        began = time.perf_counter()
        for value in tf.nest.flatten(work(), expand_composites=True):
            value.numpy()  # which waits until it is there
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
