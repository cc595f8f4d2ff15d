import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
import two_convolutions
from conftest import random_examples, replicas

from petseg.classes import IGNORED, PETS, Classes
from petseg.config import DataConfig, LossConfig
from petseg.data import input_pipeline
from petseg.data.backends.memory import MemoryExamples
from petseg.errors import ConfigError, DataError
from petseg.evaluation import large_splits
from petseg.evaluation.evaluator import Evaluator
from petseg.evaluation.keras_runner import KerasRunner
from petseg.evaluation.results import split_results
from petseg.evaluation.tiled_inference import AnySizeModel
from petseg.training import confusion_matrix, sample_weights
from petseg.training.losses import Loss


@pytest.fixture(scope="module")
def scored():
    """Examples, (strategy, model) for one to four replicas with the same weights, and the model's logits."""
    examples = random_examples(11, 32)
    examples.masks[4, :7] = IGNORED
    models: dict[int, tuple] = {}
    weights = None
    keras.utils.set_random_seed(0)
    for devices in (1, 2, 3, 4):
        strategy = replicas(devices)
        with strategy.scope():
            model = two_convolutions.synchronized(32)
        if weights:
            model.set_weights(weights)
        models[devices], weights = (strategy, model), weights or model.get_weights()
    logits = models[1][1](examples.images.astype(np.float32), training=False).numpy()
    return examples, models, logits


def evaluator_of(strategy, model, examples, batch_size, weight_map=None, score_weights=False, **options):
    weight_map = weight_map or sample_weights.weight_map(LossConfig())
    data = DataConfig(batch_size=batch_size, score_weights=score_weights, weight_feature="weight")
    with strategy.scope():
        return Evaluator(strategy, model, examples, weight_map, Loss(LossConfig()), data, **options)


def calling(function, argument, result):
    """A tensor equal to `result` whose computation calls a Python function with an argument."""
    with tf.control_dependencies([tf.py_function(function, [argument], [])]):
        return tf.identity(result)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 1), (1, 4), (1, 64), (2, 4), (3, 4), (4, 1), (4, 4), (4, 64)])
def test_every_example_counts_once_for_any_batch_size_and_number_of_replicas(scored, devices, batch_size):
    examples, models, logits = scored
    labels = examples.masks[..., 0]
    valid = labels != IGNORED
    expected = confusion_matrix.confusion_matrices(labels, logits.argmax(-1), valid, 3).numpy()
    evaluator = evaluator_of(*models[devices], examples, batch_size)
    evaluation = evaluator.evaluate()
    assert split_results(evaluation, 0, "test", PETS)["examples"] == 11
    np.testing.assert_array_equal(evaluation.confusion_matrices, expected)
    np.testing.assert_array_equal(evaluation.confusion_matrix, expected.sum(0))
    if batch_size == 4:
        classes, confidences = evaluator.predict(examples.images[:3])
        np.testing.assert_array_equal(classes, logits[:3].argmax(-1))
        np.testing.assert_allclose(confidences, tf.nn.softmax(logits[:3]).numpy().max(-1), rtol=1e-5)
    log_probabilities = tf.nn.log_softmax(logits).numpy()
    chosen = np.take_along_axis(log_probabilities, np.where(valid, labels, 0)[..., None].astype(int), -1)[..., 0]
    assert evaluation.loss == pytest.approx(-chosen[valid].mean(), rel=1e-5)


def test_evaluating_twice_gives_the_same_scores(scored):
    examples, models, _ = scored
    evaluator = evaluator_of(*models[1], examples, 4)
    first, second = (evaluator.evaluate() for _ in range(2))
    assert first.loss == second.loss
    np.testing.assert_array_equal(first.confusion_matrix, second.confusion_matrix)


@pytest.mark.parametrize("foreground", [0, 1])
def test_a_threshold_decides_between_two_classes_at_both_resolutions(foreground):
    classes = Classes.from_dict([{"name": name, "foreground": name == "ab"[foreground]} for name in "ab"])
    images = random_examples(3).images
    examples = MemoryExamples(images, images[..., :1] % 2, classes)
    model = keras.Sequential([keras.Input([32, 32, 3]), keras.layers.Rescaling(0.01), keras.layers.Conv2D(2, 1)])
    probabilities = tf.nn.softmax(model(images.astype(np.float32))).numpy()
    for threshold in (0.3, 0.7):
        is_foreground = probabilities[..., foreground] >= threshold
        predicted = np.where(is_foreground, foreground, 1 - foreground)
        expected = confusion_matrix.confusion_matrices(examples.masks[..., 0], predicted, predicted < 2, 2).numpy()
        evaluator = evaluator_of(replicas(1), model, examples, 2, threshold=threshold, details=True)
        pairs = zip(examples.images, examples.masks, strict=True)
        native = evaluator.evaluate_native(pairs, lambda image: model(image[None].astype(np.float32))[0])
        for found in (evaluator.evaluate(), native):
            np.testing.assert_array_equal(found.confusion_matrices, expected)
        np.testing.assert_array_equal(evaluator.predict(images)[0], predicted)
    with pytest.raises(ConfigError, match=r"^--threshold: must come with two classes"):
        evaluator_of(replicas(1), model, random_examples(1), 2, threshold=0.5)


@pytest.mark.slow
def test_mask_digests_depend_only_on_the_size_and_the_pixels_of_each_true_mask(scored):
    examples, models, _ = scored
    found = [evaluator_of(*models[devices], examples, 4, details=True).evaluate().truth for devices in (1, 3)]
    np.testing.assert_array_equal(*found)
    changed = examples.masks.copy()
    changed[4, 0, 0], changed[7] = 2, changed[7, ::-1]  # an ignored pixel, and a mask with as many pixels of each class
    pairs = [*zip(examples.images, changed, strict=True)]
    pairs[9] = tuple(each.reshape(16, 64, -1) for each in pairs[9])
    evaluator = evaluator_of(*models[1], examples, 4, details=True)
    native = evaluator.evaluate_native(iter(pairs), lambda image: tf.zeros([*image.shape[:2], 3])).truth
    assert np.flatnonzero(native != found[0]).tolist() == [4, 7, 9]


def test_a_pass_can_be_stopped_early_from_another_thread(scored):
    (strategy, model), stop = scored[1][1], tf.Variable(0.0)
    started, batches, ones = threading.Event(), [], sample_weights.weight_map(LossConfig())

    def count(masks):
        batches.append(len(masks))
        if len(batches) == 2:
            started.set()
        time.sleep(0.01)  # 125 batches, the last of which would come long after the stop

    evaluator = evaluator_of(
        strategy, model, random_examples(1000, 32), 8, lambda masks: calling(count, masks, ones(masks)), stop=stop
    )
    thread = threading.Thread(target=lambda: started.wait() and stop.assign(1.0))
    thread.start()
    assert evaluator.evaluate() is None
    thread.join()
    assert 2 <= len(batches) < 125
    stop.assign(0.0)
    assert len(evaluator.evaluate().confusion_matrices) == 1000


class SizeRecorder:
    """A model that records the sizes of its batches."""

    def __init__(self, model):
        self.model, self.sizes = model, []
        self.input_shape, self.output_shape = model.input_shape, model.output_shape

    def __call__(self, images, training):
        logits = self.model(images, training=training)
        return calling(lambda batch: self.sizes.append(len(batch)), images, logits)


def test_predict_uses_the_batch_size_of_a_replica(scored):
    examples, models, logits = scored
    model = SizeRecorder(models[2][1])
    evaluator = evaluator_of(models[2][0], model, examples, 8)
    classes, confidences = evaluator.predict(examples.images)
    sizes = model.sizes[:]
    assert sizes == [4, 4, 3]
    np.testing.assert_array_equal(classes, logits.argmax(-1))
    assert confidences.shape == (11, 32, 32)
    assert evaluator.predict(examples.images[:0])[0].shape == (0, 32, 32)


@pytest.mark.parametrize("devices", [1, 3])
def test_counts_by_example_go_to_the_host_with_each_batch(scored, devices):
    """The memory of a GPU holds none for all examples, during training or an evaluation."""
    examples, models, _ = scored
    evaluator = evaluator_of(*models[devices], examples, 4)
    batches, _ = input_pipeline.distributed_evaluation_batches(models[devices][0], examples, batch_size=4)
    graph = evaluator.loop.get_concrete_function(iter(batches), tf.constant(1, tf.int64)).graph.as_graph_def()
    nodes = [node for part in (graph, *graph.library.function) for node in getattr(part, "node", []) or part.node_def]
    lists = [node for node in nodes if node.op in ("TensorListReserve", "TensorListSetItem", "TensorListConcatV2")]
    assert len(lists) == 3 * 2  # of confusion matrices and ids
    assert all(node.device.endswith("CPU:0") for node in lists)


def test_at_native_resolution_one_tile_that_covers_an_image_gives_the_counts_of_the_whole_image(scored):
    strategy, model = scored[1][1]
    stop = tf.Variable(0.0)
    evaluator = evaluator_of(strategy, model, random_examples(3, 32), 4, details=True, stop=stop)
    rng = np.random.default_rng(0)
    sizes = [(20, 50), (32, 32), (41, 27)]
    pairs = [(rng.integers(0, 256, (*s, 3), np.uint8), rng.integers(0, 3, (*s, 1), np.uint8)) for s in sizes]
    pairs[0][1][:9] = IGNORED
    whole, covered, tiled = (
        evaluator.evaluate_native(iter(pairs), AnySizeModel(KerasRunner(model), tile=tile).logits)
        for tile in (None, (50, 50), (32, 32))
    )
    for (image, mask), counts in zip(pairs, whole.confusion_matrices, strict=True):
        resized = tf.round(tf.image.resize(image.astype(np.float32), [32, 32], antialias=True))
        found = tf.image.resize(model(tf.clip_by_value(resized, 0, 255)[None]), image.shape[:2]).numpy().argmax(-1)
        expected = np.zeros((4, 3), np.int64)
        np.add.at(expected, (np.minimum(mask[..., 0], 3), found[0]), 1)
        assert np.abs(counts - expected[:3]).sum() <= 2  # where two classes are equal to the last bit
    assert whole.loss == covered.loss
    for field in ("confusion_matrices", "boundaries", "calibration"):
        np.testing.assert_array_equal(getattr(whole, field), getattr(covered, field))
    np.testing.assert_array_equal(tiled.confusion_matrices.sum((1, 2)), whole.confusion_matrices.sum((1, 2)))
    assert (tiled.confusion_matrices[0] != whole.confusion_matrices[0]).any()
    np.testing.assert_array_equal(tiled.confusion_matrices[1], whole.confusion_matrices[1])
    assert np.isfinite(tiled.loss)
    stop.assign(1.0)
    assert evaluator.evaluate_native(iter(pairs), AnySizeModel(KerasRunner(model)).logits) is None


def test_a_large_split_has_the_totals_of_a_small_one_for_any_batch_size_and_number_of_replicas(scored, monkeypatch):
    examples, models, _ = scored
    whole = evaluator_of(*models[1], examples, 4, details=True).evaluate()
    assert whole.large_split is None
    monkeypatch.setattr(large_splits, "MOST_ROWS", 8)
    monkeypatch.setattr(large_splits, "BLOCK_PART", 2)  # blocks of four examples, so of 4 or 6 by whole batches
    monkeypatch.setattr(large_splits, "EXTREMES", 2)
    found = []
    for devices, batch_size in ((1, 2), (2, 6)):
        shapes = []

        def create(create_next, shapes=shapes, **options):
            variable = create_next(**options)
            shapes.append(variable.shape)
            return variable

        with tf.variable_creator_scope(create):
            evaluator = evaluator_of(*models[devices], examples, batch_size, details=True)
        assert all(len(shape) < 2 or shape[-2:] != [3, 3] for shape in shapes)  # counts by example are on the host
        found.append(evaluator.evaluate())
    for evaluation in found:
        assert evaluation.examples == 11
        assert evaluation.loss == pytest.approx(whole.loss, rel=1e-6)
        np.testing.assert_array_equal(evaluation.confusion_matrix, whole.confusion_matrix)
        np.testing.assert_array_equal(evaluation.boundary_total, whole.boundary_total)
        np.testing.assert_allclose(evaluation.calibration, whole.calibration, rtol=1e-6)
        kept = list(evaluation.ids)
        assert len(kept) == 2
        np.testing.assert_array_equal(evaluation.confusion_matrices, whole.confusion_matrices[kept])
        np.testing.assert_array_equal(evaluation.boundaries, whole.boundaries[kept])
        for part, of_all in zip(evaluation.ranked(), whole.ranked(), strict=True):
            np.testing.assert_array_equal(part, of_all[[0, 1, -2, -1]])
    np.testing.assert_array_equal(found[0].counts.parts, found[1].counts.parts)
    np.testing.assert_array_equal(found[0].truth, found[1].truth)
    stopped = evaluator_of(*models[1], examples, 2, stop=tf.Variable(1.0))
    assert stopped.evaluate() is None


def test_a_large_split_at_native_resolution_has_the_same_totals_as_a_small_one(scored, monkeypatch):
    strategy, model = scored[1][1]
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 256, (32, 32, 3), np.uint8), rng.integers(0, 3, (32, 32, 1), np.uint8)) for _ in range(5)]

    def evaluate():
        evaluator = evaluator_of(strategy, model, random_examples(5, 32), 4, details=True)
        return evaluator.evaluate_native(iter(pairs), AnySizeModel(KerasRunner(model)).logits)

    whole = evaluate()
    monkeypatch.setattr(large_splits, "MOST_ROWS", 4)
    monkeypatch.setattr(large_splits, "BLOCK_PART", 2)
    found = evaluate()
    assert (found.loss, found.examples, len(found.confusion_matrices)) == (whole.loss, 5, 1)
    for field in ("confusion_matrix", "boundary_total", "calibration"):
        np.testing.assert_array_equal(getattr(found, field), getattr(whole, field))
    np.testing.assert_array_equal(found.ranked()[0], whole.ranked()[0])


@pytest.mark.parametrize("devices", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_weighted_counts_are_the_sums_of_weights_on_any_number_of_replicas(scored, devices):
    examples, models, logits = scored
    weights = np.random.default_rng(0).integers(0, 2**10, [*examples.masks.shape[:3], 1]).astype(np.float32) / 2**8
    weighted = MemoryExamples(examples.images, examples.masks, PETS, weights=weights)
    evaluation = evaluator_of(*models[devices], weighted, 4, score_weights=True, details=True).evaluate()
    masks, predicted = examples.masks[..., 0], logits.argmax(-1)
    for i, matrix in enumerate(evaluation.confusion_matrices):
        for true in range(3):
            for found in range(3):
                chosen = (masks[i] == true) & (predicted[i] == found)
                assert matrix[true, found] == evaluation.unit * weights[i, chosen].sum()
    np.testing.assert_array_equal(evaluation.pixels, evaluation.confusion_matrices.sum(0) / evaluation.unit)
    plain = evaluator_of(*models[devices], weighted, 4, details=True).evaluate()
    assert plain.loss == evaluation.loss
    assert (plain.truth != evaluation.truth).all()
    assert plain.confusion_matrix.sum() == (masks != IGNORED).sum()


@pytest.mark.parametrize("weight", [2e9, 1e13, 3e38])
def test_weights_whose_sums_would_not_be_exact_are_refused_by_name(scored, weight):
    examples, models, _ = scored
    weights = np.ones([*examples.masks.shape[:3], 1], np.float32)
    weights[3] = weight
    weighted = MemoryExamples(examples.images, examples.masks, PETS, weights=weights)
    message = rf"^--score_weights: {weighted.names[3]}: the weights of its pixels add up to .*--weight_scale=NUMBER"
    evaluator = evaluator_of(*models[1], weighted, 4, score_weights=True, details=True)
    with pytest.raises(DataError, match=message):
        evaluator.evaluate()
    pairs = zip(weighted.images, weighted.masks, weights, strict=True)
    with pytest.raises(DataError, match=message):
        evaluator.evaluate_native(pairs, AnySizeModel(KerasRunner(models[1][1])).logits)
    assert evaluator_of(*models[1], weighted, 4).evaluate() is not None
