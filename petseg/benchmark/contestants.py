"""Contestants of the benchmark: each prepares itself from a config and returns a function that runs some steps."""

import queue
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import keras
import tensorflow as tf

from petseg.config import Config
from petseg.data import catalog, input_pipeline, loading
from petseg.errors import ConfigError
from petseg.reporting import telemetry
from petseg.runs import building, train
from petseg.runs.setup import Run, set_up
from petseg.runs.work_directory import WorkDirectory
from petseg.runtime import process_setup
from petseg.runtime.signals import StopSignals
from petseg.training.stop_requests import StopRequests
from petseg.training.trainer import Trainer

WARM_UP = 2  # steps
Contestant = Callable[[int], Any]  # does a number of steps


def serve(connection: Connection, name: str, config: Config, options: dict[str, Any]) -> None:
    """Runs a contestant for another process: sends when it is ready, then a turn for each number of steps received."""
    began = time.perf_counter()
    work = globals()[name](config, **options)
    work(WARM_UP)
    connection.send({"ready_after": time.perf_counter() - began})
    while True:
        steps, began = connection.recv(), time.perf_counter()
        work(steps)
        seconds = time.perf_counter() - began
        connection.send({"seconds": seconds, "images": steps * config.data.batch_size, **telemetry.memory()})


def bare_step(config: Config) -> Contestant:
    """The compiled loop on one batch in memory: no input, no summaries, no checkpoints."""
    strategy = process_setup.set_up_runtime(config, config.distribution, trains=True).strategy
    trainer, batches = trainer_and_batches(config, strategy)

    def work(steps: int) -> None:
        while steps:
            steps -= len(trainer.run(batches, min(steps, config.schedule.steps_per_loop)))

    return work


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


def whole_loop(config: Config) -> Contestant:
    """`train.py`, from input to checkpoints, paused between turns; evaluation is measured separately."""
    run = set_up_run(config)
    asked: queue.Queue[int] = queue.Queue()
    done: queue.Queue[BaseException | None] = queue.Queue()
    train_steps, left = run.trainer.run, 0

    def run_in_turns(batches: Any, steps: int) -> Any:
        nonlocal left
        if left <= 0:
            done.put(None)
            left = asked.get()
        times = train_steps(batches, steps)
        left -= len(times)
        return times

    def run_to_end() -> None:
        try:
            train.train_run(run)
            done.put(RuntimeError("the run ended"))
        except BaseException as error:
            done.put(error)

    def wait() -> None:
        if error := done.get():
            raise error

    def work(steps: int) -> None:
        asked.put(steps)
        wait()

    run.trainer.run = run_in_turns  # type: ignore[method-assign, assignment]
    threading.Thread(target=run_to_end, daemon=True).start()
    wait()  # for the first step to begin
    return work


def set_up_run(config: Config) -> Run:
    """The run that `train.py` would train."""
    workdir = WorkDirectory.for_training(config.runtime.workdir, config.data.dataset)
    return set_up(
        config, workdir, process_setup.set_up_runtime(config, config.distribution, trains=True), StopSignals()
    )


def keras_fit(config: Config, *, jit_compile: str | bool = "auto", batches: Any = None) -> Contestant:
    """`model.fit` of the same network, with Keras's defaults, by default on the tutorial's input pipeline."""
    model = _model(config)
    compile_as_tutorial(model, config, jit_compile=jit_compile)
    batches = tutorial_batches(config)[0] if batches is None else batches
    return lambda steps: model.fit(batches, epochs=1, steps_per_epoch=steps, verbose=0)


def compile_as_tutorial(model: keras.Model, config: Config, *, jit_compile: str | bool = "auto") -> None:
    """Compiles a model for `model.fit` as the tutorial does, with the learning rate of a config."""
    model.compile(
        optimizer=keras.optimizers.Adam(config.optimizer.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=jit_compile,
    )


def fit_in_memory(config: Config, *, jit_compile: str | bool = "auto") -> Contestant:
    """`keras_fit` on one batch in memory."""
    process_setup.set_up_runtime(config, config.distribution)
    batch = tf.data.Dataset.from_tensors(_float_batch(config)).cache().repeat().prefetch(2)
    return keras_fit(config, jit_compile=jit_compile, batches=batch)


def plain_loop(config: Config) -> Contestant:
    """A compiled loop of a gradient tape and Keras's Adam on one batch in memory, with no bookkeeping at all."""
    process_setup.set_up_runtime(config, config.distribution)
    model, optimizer = _model(config), keras.optimizers.Adam(config.optimizer.learning_rate)
    optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    images, masks = _float_batch(config)

    def step(done: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = loss_of(masks, model(images, training=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return done + 1, loss

    @tf.function(autograph=False)
    def loop(steps: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda done, _: done < steps, step, (tf.constant(0), tf.constant(0.0)))[1]

    return lambda steps: loop(tf.constant(steps)).numpy()


def _float_batch(config: Config) -> tuple[tf.Tensor, tf.Tensor]:
    """Random images, float32 [B, H, W, 3], and masks, int32 [B, H, W, 1]."""
    shape = [config.data.batch_size, *config.data.size]
    return tf.cast(_random([*shape, 3], 256), tf.float32), tf.cast(_random([*shape, 1], 3), tf.int32)


def petseg_input(config: Config) -> Contestant:
    """petseg's training input."""
    data = config.data
    examples = loading.load(data, data.train_split)
    batches = input_pipeline.distributed_training_batches(
        tf.distribute.OneDeviceStrategy("/cpu:0"),
        examples,
        batch_size=data.batch_size,
        seed=config.runtime.seed,
        first_step=0,
        last_step=10**9,
    )
    iterator = iter(batches)

    def work(steps: int) -> None:
        for _ in range(steps):
            next(iterator)

    return work


def _model(config: Config) -> keras.Model:
    """The network with random weights, on which speed does not depend."""
    return building.build_model(config, catalog.classes_of(config.data))


def _random(shape: list[int], below: int) -> tf.Tensor:
    return tf.cast(tf.random.stateless_uniform(shape, [0, 0], 0, below, tf.int32), tf.uint8)


def tutorial_batches(config: Config) -> tuple[Any, int]:
    """The input pipeline of TensorFlow's image segmentation tutorial.

    Examples are resized, cached as floats, shuffled by a buffer and flipped by two layers. Pixels stay in [0, 255]
    because the network scales them itself. Returns batches of float32 images and masks, without end; and the number of
    examples.
    """
    data = config.data
    data_set = catalog.open_data(data)
    if data_set.builder is None:
        raise ConfigError(
            f"--dataset={data.dataset}: is code, which model.fit's input cannot read; must be a TFDS data set"
        )
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
