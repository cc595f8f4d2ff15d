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

REDUCE_CALLS, REDUCES_IN_A_CALL = 5, 5  # of all-reduces alone


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
      for each: `step`, the median seconds of a step; `busy`, the processor time of one; `all_reduce` and `small`, those
      of its all-reduce and of a small one alone, 0 where there is but one replica; `bytes`, what a replica gives to the
      one all-reduce; `packs`, the collective operations that it is made of; and `small_reduces`, how many more a step
      has.
    """
    found = []
    for config in configs:
        trainer, batches = contestants.trainer_and_batches(config, strategy)
        trainer.run(batches, 1)
        before = time.process_time()
        times = trainer.run(batches, steps)
        busy = (time.process_time() - before) / steps
        several = strategy.num_replicas_in_sync > 1
        local = len(strategy.extended.worker_devices)
        operations = collective_operations(reduce_graph(trainer, strategy))
        found.append(
            {
                "step": float(np.median(times[:, 1])),
                "busy": busy,
                "all_reduce": _seconds(strategy, trainer.reduce) if several else 0.0,
                "small": _seconds(strategy, _small_all_reduce) if several else 0.0,
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


def reduce_graph(trainer: Trainer, strategy: tf.distribute.Strategy) -> tf.Graph:
    """The graph of the one all-reduce of a step, as the strategy makes it."""
    reduce = tf.function(lambda: strategy.run(trainer.reduce), autograph=False)
    return reduce.get_concrete_function().graph


def collective_operations(graph: tf.Graph) -> list[tf.Operation]:
    """The operations of a graph that sum over replicas."""
    return [operation for operation in graph.get_operations() if operation.type.startswith("CollectiveReduce")]


def collectives_of_a_step(trainer: Trainer, batches: Any) -> int:
    """The operations of a step that sum over replicas, those of all replicas of this process counted."""
    graph = trainer._loop.get_concrete_function(batches, tf.constant(1, tf.int64)).graph.as_graph_def()
    return sum(
        node.op.startswith("CollectiveReduce") for function in graph.library.function for node in function.node_def
    )


def _small_all_reduce() -> Any:
    values = tf.ones([int(SMALL_BYTES) // 4])
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def _seconds(strategy: tf.distribute.Strategy, reduce: Callable[[], Any]) -> float:
    """Median seconds of an all-reduce, of calls of a compiled loop that makes one after the other."""

    def once(done: tf.Tensor) -> tuple[tf.Tensor]:
        reduced = tf.nest.flatten(strategy.run(reduce), expand_composites=True)
        with tf.control_dependencies(reduced):
            return (done + 1,)

    @tf.function(autograph=False)
    def loop() -> tf.Tensor:
        return tf.while_loop(lambda done: done < REDUCES_IN_A_CALL, once, (tf.constant(0),))[0]

    seconds = []
    for _ in range(REDUCE_CALLS + 1):
        began = time.perf_counter()
        loop().numpy()
        seconds.append((time.perf_counter() - began) / REDUCES_IN_A_CALL)
    return statistics.median(seconds[1:])
