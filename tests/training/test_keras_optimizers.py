"""Each optimizer by name: alike on all replicas, without an all-reduce of its own, undisturbed by skips and resumes."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_examples, replicas
from test_replicas import collective_operations
from trainers import make_trainer

from petseg.config import OptimizerConfig
from petseg.data import input_pipeline
from petseg.errors import ConfigError
from petseg.training import keras_optimizers, optimizers

NAMES = OptimizerConfig.__dataclass_fields__["optimizer"].metadata["allowed"].choices
SHAPES = {"kernel": (3, 3, 4, 5), "dense": (6, 4), "bias": (5,), "depthwise": (3, 3, 4, 1), "logits": (4, 3)}
RATE, DECAY = 0.01, 0.1


@pytest.fixture(autouse=True)
def skip_muon(request):
    if "muon" in request.node.name and "adam_weight_decay" not in inspect.signature(keras.optimizers.Muon).parameters:
        pytest.skip(f"Keras {keras.__version__} has another Muon")


def config_of(name):
    return OptimizerConfig(optimizer=name, weight_decay=0.0 if name == "adam" else DECAY)


class Updates:
    """Weights of several kinds that an optimizer updates on a number of replicas towards 0."""

    def __init__(self, name, number):
        rng, self.strategy = np.random.default_rng(0), replicas(number)
        with self.strategy.scope():
            self.weights = [
                keras.Variable(rng.normal(size=shape).astype(np.float32), name=kind) for kind, shape in SHAPES.items()
            ]
            group = optimizers.Group(self.weights, lambda step: tf.constant(RATE))
            self.optimizer = optimizers.Optimizer(config_of(name), [group])
        self.optimizer.set_learning_rates(tf.constant(0, tf.int64))
        self.checkpoint = tf.train.Checkpoint(optimizer=self.optimizer, weights=[w.value for w in self.weights])
        self.update = tf.function(self._update, autograph=False)

    def _update(self, finite):
        """As the trainer applies reduced gradients, or skips the step."""

        def apply():
            self.optimizer.apply(self.optimizer.join([weight.value * 0.5 for weight in self.weights]))

        def on_replicas():
            self.strategy.run(apply)
            return tf.constant(True)

        return tf.cond(finite, on_replicas, lambda: tf.constant(False))

    def steps(self, count, finite=True):
        for _ in range(count):
            self.update(tf.constant(finite))
        return self.values()

    def values(self, replica=0):
        parts = [self.strategy.experimental_local_results(weight.value)[replica].numpy() for weight in self.weights]
        return np.concatenate([part.ravel() for part in parts])

    def collective_operations(self):
        graph = self.update.get_concrete_function(tf.constant(True)).graph.as_graph_def()
        nodes = [node.op for function in graph.library.function for node in function.node_def]
        return [op for op in nodes if "Reduce" in op and "Collective" in op]


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_is_alike_on_replicas_adds_no_all_reduce_skips_and_resumes(name, tmp_path):
    one, two = Updates(name, 1), Updates(name, 2)
    first = two.values()
    np.testing.assert_array_equal(one.steps(2), two.steps(2))
    assert not two.collective_operations()
    saved = two.checkpoint.save(str(tmp_path / "checkpoint"))
    before = two.values()
    np.testing.assert_array_equal(two.steps(1, finite=False), before)
    last = two.steps(3)
    np.testing.assert_array_equal(two.values(0), two.values(1))
    np.testing.assert_array_equal(one.steps(3), last)
    fresh = Updates(name, 2)
    fresh.checkpoint.restore(saved).assert_consumed()
    np.testing.assert_array_equal(fresh.steps(3), last)
    assert np.abs(last).mean() < np.abs(before).mean() < np.abs(first).mean()


def four_layers(size):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input([size, size, 3]),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.UpSampling2D(),
            layers.Conv2D(3, 1, dtype="float32", name="logits"),
        ]
    )


# An optimizer sees float32 gradients in both; so bfloat16 has one with flat vectors, and one of the others.
BFLOAT16 = {name: pytest.mark.slow if name in ("adam", "muon") else pytest.mark.soak for name in NAMES}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *(pytest.param(name, "mixed_float16", marks=pytest.mark.slow) for name in NAMES),
        *(pytest.param(name, "mixed_bfloat16", marks=mark) for name, mark in BFLOAT16.items()),
    ],
)
def test_a_step_in_mixed_precision_has_one_all_reduce_is_skipped_on_overflow_and_resumes(name, precision, tmp_path):
    scaled, examples = precision == "mixed_float16", random_examples(8)
    trainer, strategy, batches = make_trainer(
        2,
        examples=examples,
        batch_size=8,
        optimizer=name,
        weight_decay=config_of(name).weight_decay,
        precision=precision,
        initial_loss_scale=2.0**100,
        network=four_layers,
    )
    assert collective_operations(trainer, batches) == 2  # one of each replica
    before = list(trainer.weights().values())
    if scaled:
        trainer.run(batches, 1)
        for old, new in zip(before, trainer.weights().values(), strict=True):
            np.testing.assert_array_equal(old, new)
        (scale,) = [variable for variable in trainer.loss_scale.variables if variable.dtype == tf.float32]
        scale.assign(8.0)
    trainer.run(batches, 2)
    trainer.complete_state()
    step, checkpoint = int(trainer.step.numpy()), tf.train.Checkpoint(**trainer.state())
    saved = checkpoint.save(str(tmp_path / "checkpoint"))
    trainer.run(batches, 2)
    undisturbed = list(trainer.weights().values())
    for old, new in zip(before, undisturbed, strict=True):
        assert np.isfinite(new).all()
        assert new.ndim < 2 or (new != old).any()
    checkpoint.restore(saved).assert_consumed()
    resumed = input_pipeline.distributed_training_batches(
        strategy, examples, batch_size=8, seed=0, first_step=step, last_step=100
    )
    batches_after = iter(resumed)  # kept until the end, as in a run: its threads still prefetch
    trainer.run(batches_after, 2)
    for old, new in zip(undisturbed, trainer.weights().values(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert trainer.loop.traces == 1
    assert trainer.pop_measurements().scalars["skipped_steps"] == scaled


def test_schedule_free_adamw_follows_its_paper():
    rng = np.random.default_rng(1)
    weight, rates = keras.Variable(rng.normal(size=(3, 2)).astype(np.float32)), [0.0, 0.01, 0.02, 0.02, 0.02]
    y = weight.numpy().astype(np.float64)
    z, x, v, total = y, y, np.zeros_like(y), 0.0
    optimizer = keras_optimizers.ScheduleFreeAdamW(DECAY)
    optimizer.build([weight])
    for t, rate in enumerate(rates, start=1):
        gradient = rng.normal(size=y.shape)
        optimizer.learning_rate.assign(rate)
        optimizer.apply_gradients([(tf.constant(gradient, tf.float32), weight)])
        v = 0.999 * v + 0.001 * gradient**2
        z = z - rate * (gradient / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + DECAY * y)
        total += rate**2
        x = x + (rate**2 / total if total else 0) * (z - x)
        y = 0.1 * z + 0.9 * x
        np.testing.assert_allclose(weight, y, rtol=1e-5)


def test_an_optimizer_that_an_old_keras_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(keras.optimizers, "Muon", keras.optimizers.SGD)
    with pytest.raises(ConfigError, match=r"--optimizer=muon: Keras 3\.\d+\.\d+ has another Muon; must be a newer"):
        keras_optimizers.named_optimizer(config_of("muon"))


def test_muon_makes_updates_of_kernels_nearly_orthogonal_and_leaves_the_rest_to_adamw():
    updates = Updates("muon", 1)
    before = [weight.numpy() for weight in updates.weights]
    updates.steps(1)
    moved = [old - weight.numpy() for old, weight in zip(before, updates.weights, strict=True)]
    for change, old, (kind, shape) in zip(moved, before, SHAPES.items(), strict=True):
        step = change / RATE - DECAY * old * (len(shape) > 1)
        if kind in ("kernel", "dense"):
            matrix = step.reshape(-1, shape[-1])
            values = np.linalg.svd(matrix / (0.2 * max(matrix.shape) ** 0.5), compute_uv=False)
            assert values.min() > 0.4
            assert values.max() < 1.4
        else:
            np.testing.assert_allclose(np.abs(step), 1, rtol=1e-2)  # the first step of Adam


OWN = """
import keras

kept = keras.optimizers.SGD()

def nadam(config):
    return keras.optimizers.Nadam(weight_decay=config.weight_decay)

def name(config):
    return "adam"

def scheduled(config):
    return keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10))

def accumulating(config):
    return keras.optimizers.SGD(gradient_accumulation_steps=2)

def same(config):
    if not kept.built:
        kept.build([])
    return kept

def failing(config):
    return config.rate
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return lambda function: OptimizerConfig(optimizer=f"{tmp_path}/own.py:{function}", weight_decay=DECAY)


def test_code_of_the_user_makes_an_optimizer(own):
    made = keras_optimizers.named_optimizer(own("nadam"))
    assert type(made) is keras.optimizers.Nadam
    assert made.weight_decay == DECAY


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("name", "returned a str; must be a new Keras optimizer"),
        ("scheduled", "returned one with a learning-rate schedule; must be"),
        ("accumulating", "returned one that accumulates gradients; must be"),
        ("same", "returned one that is built, or the same one again; must be"),
        ("failing", "failed: AttributeError: 'OptimizerConfig' object has no attribute 'rate'"),
    ],
)
def test_code_that_makes_no_usable_optimizer_is_refused_in_one_line(own, function, message):
    with pytest.raises(ConfigError) as caught:
        keras_optimizers.named_optimizer(own(function))
    assert f"own.py:{function}: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)
