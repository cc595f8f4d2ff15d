"""Measures steps and all-reduces of replicas of one process, or of one worker of a cluster, in its own process."""

import logging
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
from petseg.runtime import process_setup
from petseg.training.trainer import Trainer

REDUCE_CALLS, REDUCES_IN_A_CALL = 5, 5


def measure(connection: Connection, configs: Sequence[Config], steps: int) -> None:
    """Sends another process the results of `measure_on`, on the devices of the first config."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of retracing: each config has its own trainer
    strategy = process_setup.set_up_runtime(configs[0], configs[0].distribution).strategy
    connection.send(measure_on(strategy, configs, steps))


def measure_input(connection: Connection, config: Config, steps: int) -> None:
    """Sends another process the images per second of this host's input."""
    work = contestants.petseg_input(config)
    work(contestants.WARM_UP)
    began = time.perf_counter()
    work(steps)
    connection.send(steps * config.data.batch_size / (time.perf_counter() - began))


def measure_on(strategy: tf.distribute.Strategy, configs: Sequence[Config], steps: int) -> list[dict[str, Any]]:
    """Measures steps and all-reduces of each config under a strategy.

    Returns for each config: `step`, median seconds of a step; `busy`, its seconds of processor time; `all_reduce` and
    `small`, seconds of its all-reduce and of a small one alone, 0 with one replica; `bytes` that a replica contributes
    to the all-reduce; `packs`, the number of collective operations in it; and `small_reduces`, the number of further
    collective operations in a step.
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
        packs = len(collective_operations(reduce_graph(trainer, strategy))) // local
        found.append(
            {
                "step": float(np.median(times[:, 1])),
                "busy": busy,
                "all_reduce": _seconds(strategy, trainer.reduce) if several else 0.0,
                "small": _seconds(strategy, _small_all_reduce) if several else 0.0,
                "bytes": all_reduce_bytes(trainer),
                "packs": packs,
                "small_reduces": len(collective_operations(trainer.loop.graph(batches))) // local - packs,
            }
        )
    return found


def all_reduce_bytes(trainer: Trainer) -> int:
    """Bytes that a replica contributes to the all-reduce of a step, from the sizes of its tensors."""
    tensors = tf.nest.flatten(trainer.to_reduce())
    return sum(tensor.shape.num_elements() * tensor.dtype.size for tensor in tensors)


def reduce_graph(trainer: Trainer, strategy: tf.distribute.Strategy) -> tf.Graph:
    reduce = tf.function(lambda: strategy.run(trainer.reduce), autograph=False)
    return reduce.get_concrete_function().graph


def collective_operations(graph: tf.Graph) -> list[Any]:
    """The operations of a graph and its functions that sum over replicas, for all replicas of this process."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    return [node for node in nodes if node.op.startswith("CollectiveReduce")]


def _small_all_reduce() -> Any:
    values = tf.ones([int(SMALL_BYTES) // 4])
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def _seconds(strategy: tf.distribute.Strategy, reduce: Callable[[], Any]) -> float:
    """Median seconds of an all-reduce, measured in a compiled loop of them."""

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
