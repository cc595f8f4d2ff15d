"""The model of scaling: its fit, and predictions compared with those computed by hand."""

import dataclasses

import numpy as np
import pytest

from petseg.benchmark import scaling_model
from petseg.benchmark.scaling_model import REPLICAS, SMALL_BYTES, WORKERS, Link, Machine, Point, SharedCores

TRUE = SharedCores(
    cores=2,
    alone=(0.02, 0.03),
    busy=(0.025, 0.045),  # one replica keeps 1.5 of 2 cores busy
    links={REPLICAS: Link(1e-4, 4e9), WORKERS: Link(5e-4, 1e9)},
)


def made_up_points(noise=0.0):
    """Points computed by the true model."""
    rng = np.random.default_rng(0)
    points = []
    for kind in (REPLICAS, WORKERS):
        for number in (1, 2, 3, 4):
            for batch_size in (4 * number, 24):
                point = Point(kind, number, "", batch_size, step=1.0, bytes=2e7, small_reduces=20)
                fixed, each = TRUE.busy
                times = {
                    "step": TRUE.step(point),
                    "busy": number * fixed + each * batch_size,
                    "all_reduce": TRUE.links[kind].shared_ring(number, point.bytes),
                    "small": TRUE.links[kind].shared_ring(number, SMALL_BYTES),
                }
                times = {name: time * (1 + noise * rng.uniform(-1, 1)) for name, time in times.items()}
                points.append(dataclasses.replace(point, **times))
    return points


def test_several_replicas_fill_idle_cores_until_all_are_busy():
    # Of 24 examples: 12 take 0.38 s alone and 0.565 s of processor time each of two; 8 take 0.26 and 0.385 each of 3.
    assert TRUE.compute(1, 24) == pytest.approx(0.74)
    assert TRUE.compute(2, 24) == pytest.approx(2 * 0.565 / 2)
    assert TRUE.compute(3, 24) == pytest.approx(3 * 0.385 / 2)
    many = dataclasses.replace(TRUE, cores=64)  # enough for all: as long as one by itself
    assert (many.compute(2, 24), many.compute(3, 24)) == pytest.approx((0.38, 0.26))


def test_the_fit_recovers_the_true_model():
    found = scaling_model.fit(made_up_points(), cores=2)
    assert (*found.alone, *found.busy) == pytest.approx((*TRUE.alone, *TRUE.busy))
    for kind in (REPLICAS, WORKERS):
        assert dataclasses.astuple(found.links[kind]) == pytest.approx(dataclasses.astuple(TRUE.links[kind]))


def test_held_out_points_are_predicted_and_do_not_affect_the_fit():
    points = made_up_points(noise=0.05)
    found = scaling_model.fit(points, cores=2)
    for point in points:
        assert found.step(point) == pytest.approx(TRUE.step(point), rel=0.15)
    held_out = [not point.fitted for point in points]
    assert held_out == [point.number > 1 or point.kind == WORKERS for point in points]
    spoilt = [dataclasses.replace(p, step=99.0) if out else p for p, out in zip(points, held_out, strict=True)]
    assert scaling_model.fit(spoilt, cores=2) == found


def test_nothing_is_fitted_below_zero():
    points = [
        Point(REPLICAS, 1, "", 10, step=1.0, busy=1.0),
        Point(REPLICAS, 1, "", 20, step=2.5, busy=2.0),
        Point(REPLICAS, 2, "", 20, step=1.0, all_reduce=0.8, small=0.9, bytes=1e6, small_reduces=9),
    ]
    found = scaling_model.fit(points, cores=2)
    assert found.alone[0] == 0
    assert 0.1 <= found.alone[1] <= 0.125
    assert found.links[REPLICAS].bandwidth == float("inf")


def test_an_all_reduce_takes_a_ring_or_a_tree_whichever_is_faster():
    link = Link(1e-5, 1e9)
    assert link.all_reduce(1, 1e9) == 0
    assert link.all_reduce(4, 4e8) == pytest.approx(6 * (1e-5 + 0.1))  # large: a ring
    assert link.all_reduce(64, 1e3) == pytest.approx(12 * 1e-5 + 2e-6)  # small: a tree of 6 levels
    assert link.shared_ring(3, 1e9) == pytest.approx(4 * (1e-5 + 1))


# A GPU makes 100 images/s; 4 GPUs of 10 GB/s in a node of 1 GB/s, whose input makes 1,000 images/s.
MACHINE = Machine(100.0, 4, Link(0.0, 1e10), Link(1e-3, 1e9), 1000.0)


@pytest.mark.parametrize(
    ("machine", "gpus", "batch", "size", "small", "step", "bottleneck"),
    [
        (MACHINE, 1, 50, 1e9, 0, 0.5, "compute"),
        (MACHINE, 4, 50, 1e9, 0, 0.5 + 0.15, "compute"),  # 6 shares of a quarter at 10 GB/s
        (MACHINE, 8, 50, 1e9, 0, 0.5 + 0.15 + 2 * (1e-3 + 0.5), "network"),
        (MACHINE, 8, 50, 0, 9, 0.5 + 2e-3 + 9 * (6 * 1024 / 1e10 + 2 * (1e-3 + 2048 / 1e9)), "compute"),
        (dataclasses.replace(MACHINE, input_per_host=100.0), 4, 50, 1e9, 0, 2.0, "input"),
        (dataclasses.replace(MACHINE, input_per_host=100.0), 1, 50, 1e9, 0, 0.5, "compute"),
    ],
)
def test_predictions_are_those_computed_by_hand(machine, gpus, batch, size, small, step, bottleneck):
    found = scaling_model.predict(machine, gpus, batch, size=size, small_reduces=small)
    expected = {"step": step, "images_per_second": gpus * batch / step, "efficiency": 0.5 / step}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert found["bottleneck"] == bottleneck
