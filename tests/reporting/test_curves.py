import tracemalloc

import numpy as np

from petseg.classes import PETS, Classes
from petseg.reporting import curves
from petseg.reporting.curves import Curves

MANY = Classes.from_dict([f"class{i}" for i in range(150)])


def points(collected, run, tag):
    return [(step, value) for step, *which, value in collected.rows() if which == [run, tag]]


def test_a_short_curve_keeps_all_points():
    collected = Curves(PETS)
    expected = [(step, 1 / step) for step in range(1, curves.MOST_POINTS)]
    for step, value in expected:
        collected.add(step, "train", "loss", value)
        collected.add(step, "eval", "iou/pet", -value)
    assert points(collected, "train", "loss") == expected
    assert [-value for _, value in points(collected, "eval", "iou/pet")] == [value for _, value in expected]


def test_a_long_curve_is_thinned_out_evenly_and_keeps_its_last_point():
    collected = Curves(PETS)
    for step in range(1, 10_008):
        collected.add(step, "train", "loss", float(step))
    steps = [step for step, _ in points(collected, "train", "loss")]
    assert curves.MOST_POINTS / 2 < len(steps) <= curves.MOST_POINTS
    assert (steps[0], steps[-1]) == (1, 10_007)
    assert len(set(np.diff(steps[:-1]))) == 1


def test_scalars_that_no_chart_shows_are_not_kept():
    collected = Curves(MANY)
    for run, tag in (("final", "final/IoU"), ("train", "optimization/learning_rate"), ("train", "iou/class3"),
                     ("eval", "dice/class3"), ("eval", "iou/other"), ("eval", "iou/class3")):  # fmt: skip
        collected.add(1, run, tag, 0.5)
    assert list(collected.rows()) == [(1, "eval", "iou/class3", 0.5)]


def test_the_log_of_an_earlier_process_is_read_in_bounded_memory(tmp_path):
    file = tmp_path / "metrics.csv"
    with open(file, "w") as stream:
        stream.write("step,run,tag,value\n")
        for step in range(1, 301):
            for name in MANY.names:
                stream.write(f"{step},train,iou/{name},0.123456\n{step},eval,iou/{name},{step / 300}\n")
    collected = Curves(MANY)
    tracemalloc.start()
    try:
        collected.read(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20  # 90,000 rows as tuples would take 18 MiB
    assert points(collected, "eval", "iou/class7")[-1] == (300, 1.0)
