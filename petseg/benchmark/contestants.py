"""Contestants: generators that prepare themselves, then take turns, each in its own process.

A contestant first yields a dictionary of facts when it is ready. It is then sent a number of steps for each turn, and
yields a `Turn`.
"""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from typing import Any

import keras
import tensorflow as tf

from petseg.benchmark import step_cost
from petseg.config import Config
from petseg.data import catalog, input_pipeline, loading
from petseg.models import inference
from petseg.reporting import telemetry
from petseg.runs import building, train
from petseg.runs.setup import Run, set_up
from petseg.runs.work_directory import WorkDirectory
from petseg.runtime import host_allocator, process
from petseg.runtime.signals import StopSignals
from petseg.training.stop_requests import StopRequests
from petseg.training.trainer import Trainer

WARM_UP = 2  # steps


@dataclasses.dataclass(frozen=True)
class Turn:
    """The result of a turn.

    Attributes:
      seconds: wall-clock time.
      images: number of images processed.
    """

    seconds: float
    images: int


Contestant = Generator[Any, int, None]


def serve(connection: Connection, name: str, config: Config) -> None:
    """Runs a contestant for another process: sends its facts, then a turn for each number of steps received."""
    contestant = CONTESTANTS[name](config)
    began = time.perf_counter()
    facts = next(contestant)
    connection.send({**facts, "ready_after": time.perf_counter() - began})
    while True:
        turn = contestant.send(connection.recv())
        connection.send({**dataclasses.asdict(turn), **telemetry.memory()})


def timed(images: int, work: Callable[[int], Any], facts: Callable[[], dict[str, float]] = dict) -> Contestant:
    """A contestant that calls `work(steps)` in each turn, `images` for each step; yields `facts` after a warm-up."""
    work(WARM_UP)
    steps = yield facts()
    while True:
        began = time.perf_counter()
        work(steps)
        steps = yield Turn(time.perf_counter() - began, images * steps)


def bare_step(config: Config) -> Contestant:
    """The compiled loop on one batch in memory: no input, no summaries, no checkpoints."""
    strategy = process.set_up_runtime(config, config.distribution).strategy
    trainer, batches = trainer_and_batches(config, strategy)

    def work(steps: int) -> None:
        while steps:
            steps -= len(trainer.run(batches, min(steps, config.schedule.steps_per_loop)))

    yield from timed(config.data.batch_size, work)


def trainer_and_batches(config: Config, strategy: tf.distribute.Strategy) -> tuple[Trainer, Any]:
    """The trainer of a config under a strategy, and an iterator that repeats one batch in memory."""
    with strategy.scope():
        model = _model(config)
        trainer = building.build_trainer(config, strategy, model, None, 10**6, StopRequests())
    per_replica = config.data.batch_size // strategy.num_replicas_in_sync
    batch = {
        "image": _random([per_replica, *config.data.size, 3], 256),
        "mask": _random([per_replica, *config.data.size, 1], 3),
        "example_id": tf.range(per_replica, dtype=tf.int64),
        "position": tf.range(per_replica, dtype=tf.int64),
    }
    batches = iter(
        strategy.distribute_datasets_from_function(lambda _: tf.data.Dataset.from_tensors(batch).cache().repeat())
    )
    return trainer, batches


def counted_step(config: Config) -> Contestant:
    """`bare_step`, whose facts are the operations and bytes of an image."""
    contestant = bare_step(config)
    next(contestant)
    flops, moved = step_cost.flops_and_bytes(_model(config), config.data.batch_size)
    steps = yield {"flops_per_image": flops, "bytes_per_image": moved}
    while True:
        steps = yield contestant.send(steps)


def whole_loop(config: Config) -> Contestant:
    """`train.py`, from input to checkpoints, paused between turns; evaluation is measured separately."""
    run = set_up_run(config)
    steps_of_turns: queue.Queue[int] = queue.Queue()
    results: queue.Queue[float | BaseException] = queue.Queue()
    train_steps, left, began = run.trainer.run, WARM_UP, 0.0

    def wait_for_turn(batches: Any, steps: int) -> Any:
        nonlocal left, began
        if left <= 0:
            results.put(time.perf_counter() - began)
            left = steps_of_turns.get()
            began = time.perf_counter()
        times = train_steps(batches, steps)
        left -= len(times)
        return times

    def run_to_end() -> None:
        try:
            train.train_run(run)
            results.put(RuntimeError("the run ended"))
        except BaseException as error:
            results.put(error)

    def seconds_of_turn() -> float:
        result = results.get()
        if isinstance(result, BaseException):
            raise result
        return result

    run.trainer.run = wait_for_turn  # type: ignore[method-assign, assignment]
    threading.Thread(target=run_to_end, daemon=True).start()
    seconds_of_turn()  # the warm-up
    steps = yield {}
    while True:
        steps_of_turns.put(steps)
        steps = yield Turn(seconds_of_turn(), steps * config.data.batch_size)


def set_up_run(config: Config) -> Run:
    """The run that `train.py` would train."""
    workdir = WorkDirectory.for_training(config.runtime.workdir, config.data.dataset)
    return set_up(config, workdir, process.set_up_runtime(config, config.distribution), StopSignals())


def keras_fit(config: Config, *, jit_compile: str | bool = "auto") -> Contestant:
    """`model.fit` of the same network on the tutorial's input pipeline, with Keras's defaults."""
    model = _model(config)
    model.compile(
        optimizer=keras.optimizers.Adam(config.optimizer.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=jit_compile,
    )
    batches, _ = tutorial_batches(config)
    yield from timed(
        config.data.batch_size, lambda steps: model.fit(batches, epochs=1, steps_per_epoch=steps, verbose=0)
    )


def keras_fit_without_xla(config: Config) -> Contestant:
    """`keras_fit` with `jit_compile=False`."""
    yield from keras_fit(config, jit_compile=False)


def petseg_input(config: Config) -> Contestant:
    """petseg's training input."""
    data = config.data
    before = telemetry.memory()["memory/host"]
    examples = loading.load(data, data.train_split)
    batches = iter(
        input_pipeline.distributed_training_batches(
            tf.distribute.OneDeviceStrategy("/cpu:0"),
            examples,
            batch_size=data.batch_size,
            seed=config.runtime.seed,
            first_step=0,
            last_step=10**9,
        )
    )
    yield from _input(batches, before, len(examples), data.batch_size)


def tutorial_input(config: Config) -> Contestant:
    """The tutorial's training input."""
    before = telemetry.memory()["memory/host"]
    batches, count = tutorial_batches(config)
    yield from _input(iter(batches), before, count, config.data.batch_size)


def _input(batches: Any, before: float, examples: int, batch_size: int) -> Contestant:
    def work(steps: int) -> None:
        for _ in range(steps):
            next(batches)

    work(2 * examples // batch_size)  # fills the caches
    yield from timed(batch_size, work, lambda: {"data_memory": telemetry.memory()["memory/host"] - before})


def passes(images: int, work: Callable[[], Any]) -> Contestant:
    """A contestant that calls `work()` once in each turn, whatever its number of steps."""
    work()
    yield {}
    while True:
        began = time.perf_counter()
        work()
        yield Turn(time.perf_counter() - began, images)


def forward_pass(config: Config) -> Contestant:
    """The compiled network alone, over as many random images as the evaluation split has."""
    process.set_up_runtime(config, config.distribution)
    data, model = config.data, _model(config)
    count = catalog.open_data(data).num_examples(data.eval_split)
    images = _random([data.batch_size, *model.input_shape[1:]], 256)

    @tf.function
    def forward(batches: tf.Tensor) -> tf.Tensor:
        total = tf.constant(0.0)
        for _ in tf.range(batches):
            # One batch at a time, as elsewhere; several would be faster on a CPU, but need more memory.
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)
            total += tf.reduce_sum(inference.logits(model, images))
        return total

    whole, rest = divmod(count, data.batch_size)

    @tf.function
    def last() -> tf.Tensor:
        return tf.reduce_sum(inference.logits(model, images[:rest]))

    def work() -> None:
        forward(tf.constant(whole)).numpy()
        if rest:
            last().numpy()

    yield from passes(count, work)


def prediction(config: Config) -> Contestant:
    """The compiled network alone, on one batch in memory."""
    process.set_up_runtime(config, config.distribution)
    model, size = _model(config), config.data.batch_size
    images = _random([size, *model.input_shape[1:]], 256)
    forward = tf.function(lambda: tf.reduce_sum(inference.logits(model, images)), autograph=False)

    def work(steps: int) -> None:
        for _ in range(steps):
            forward().numpy()

    yield from timed(size, work)


def evaluation(config: Config) -> Contestant:
    """The evaluator's pass over the evaluation split."""
    data = config.data
    strategy = process.set_up_runtime(config, config.distribution).strategy
    examples = loading.load(data, data.eval_split)
    with strategy.scope():
        evaluator = building.build_evaluator(config, strategy, _model(config), examples, None, StopRequests())
    yield from passes(len(examples), evaluator.evaluate)


def matrix_product(config: Config) -> Contestant:
    """A product of large matrices; each of its floating-point operations counts as an image."""
    host_allocator.keep_freed_memory()
    rows, columns = 4096, 2048
    left, right = tf.random.normal([rows, columns]), tf.random.normal([columns, columns])

    @tf.function
    def product() -> tf.Tensor:
        return tf.matmul(left, right)

    def work(steps: int) -> None:
        for _ in range(steps):
            result = product()
        result.numpy()

    yield from timed(2 * rows * columns * columns, work)


def memory_copy(config: Config) -> Contestant:
    """The sum of a large array and a number; each byte read or written counts as an image."""
    host_allocator.keep_freed_memory()
    array = tf.random.normal([2**24])

    @tf.function
    def add_one(array: tf.Tensor) -> tf.Tensor:
        return array + 1.0

    def work(steps: int) -> None:
        for _ in range(steps):
            result = add_one(array)
        result.numpy()

    yield from timed(2 * 4 * 2**24, work)


def _model(config: Config) -> keras.Model:
    """The network with random weights, on which speed does not depend."""
    return building.build_model(config, catalog.classes_of(config.data))


def _random(shape: list[int], below: int) -> tf.Tensor:
    return tf.cast(tf.random.stateless_uniform(shape, [0, 0], 0, below, tf.int32), tf.uint8)


def tutorial_batches(config: Config) -> tuple[Any, int]:
    """The input pipeline of TensorFlow's image segmentation tutorial.

    Examples are resized, cached as floats, shuffled by a buffer and flipped by two layers. Pixels stay in [0, 255]
    because the network scales them itself.

    Returns:
      batches of float32 images and masks, without end; and the number of examples.
    """
    data = config.data
    data_set = catalog.open_data(data)
    raw = data_set.builder.as_dataset(split=data.train_split, shuffle_files=False)
    size = list(data.size)
    flip_images = keras.layers.RandomFlip("horizontal", seed=42)
    flip_masks = keras.layers.RandomFlip("horizontal", seed=42)

    def load(example: Any) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.cast(tf.image.resize(example["image"], size), tf.float32)
        return image, tf.image.resize(example["segmentation_mask"], size, method="nearest") - 1

    batches = (
        raw.map(load, num_parallel_calls=tf.data.AUTOTUNE)
        .cache()
        .shuffle(1000)
        .batch(data.batch_size)
        .repeat()
        .map(lambda images, masks: (flip_images(images), flip_masks(masks)))
        .prefetch(buffer_size=tf.data.AUTOTUNE)
    )
    return batches, data_set.num_examples(data.train_split)


CONTESTANTS: dict[str, Callable[[Config], Contestant]] = {
    contestant.__name__: contestant
    for contestant in (
        bare_step,
        counted_step,
        whole_loop,
        keras_fit,
        keras_fit_without_xla,
        petseg_input,
        tutorial_input,
        forward_pass,
        prediction,
        evaluation,
        matrix_product,
        memory_copy,
    )
}
