"""--measure=scaling: its flags, what it measures, its tables and its picture."""

import json

import pytest
from conftest import changed, make_trainer, random_examples, replicas
from PIL import Image

from petseg.benchmark import __main__ as program, scaling, scaling_contestants, scaling_tables
from petseg.benchmark.scaling import ScalingConfig
from petseg.benchmark.scaling_model import REPLICAS, WORKERS
from petseg.config import command_line
from petseg.errors import ConfigError


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scaling_numbers=1,3"], "--scaling_numbers=1,3: must be different numbers from 1 on, 1 and 2 among them"),
        (["--scaling_numbers=0,1,2"], "--scaling_numbers=0,1,2: must be different numbers from 1 on"),
        (["--scaling_numbers=1,2,x"], "--scaling_numbers=1,2,x: must be different numbers from 1 on"),
        (["--scaling_kinds=workers"], "--scaling_kinds=workers: must be replicas, or replicas,workers"),
        (["--batch_size=30"], "--batch_size=30: must be a multiple of the largest of --scaling_numbers, 4"),
        (["--batch_size=4"], "--batch_size=4: must be a multiple of the largest of --scaling_numbers, 4, and at least"),
        (["--plot=nowhere/plot.png"], "--plot=nowhere/plot.png: its folder does not exist"),
        (["--interconnect_gb=0"], "--interconnect_gb=0.*: must be a number above 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        command_line.parse(["benchmark", "--measure=scaling", *flags], program.BenchmarkConfig)


def test_batches_of_weak_and_strong_scaling():
    found = [scaling.batch_sizes(64, number, 4) for number in (1, 2, 3, 4)]
    assert found == [{16: "weak", 64: "strong"}, {32: "weak", 64: "strong"}, {48: "weak", 63: "strong"}, {64: "both"}]


def test_the_machine_is_that_of_the_flags():
    config = ScalingConfig(gpus_per_node=4, interconnect_gb=2.0, interconnect_us=3.0)
    machine = config.machine(500.0)
    assert (machine.gpus_per_node, machine.between.bandwidth, machine.between.latency) == (4, 2e9, 3e-6)
    assert machine.input_per_host == 500
    assert ScalingConfig(input_images_per_second=7.0).machine(500.0).input_per_host == 7


@pytest.mark.parametrize(("dtype", "packs"), [("float32", 1), pytest.param("float16", 2, marks=pytest.mark.slow)])
def test_bytes_in_the_graph_are_those_of_gradients_and_sums(dtype, packs):
    trainer, strategy, _ = make_trainer(
        2, examples=random_examples(8), batch_size=8, sync_batch_norm=False, all_reduce_dtype=dtype
    )
    weights = sum(int(weight.size) for weight in trainer.weights().values())
    statistics = sum(int(variable.numpy().size) for variable in trainer._statistics)
    scalars = 2 + 2  # loss and denominator; what is asked from outside
    gradient = 4 if dtype == "float32" else 2
    assert scaling_contestants.bytes_of(trainer) == gradient * weights + 4 * (statistics + scalars)
    assert scaling_contestants.bytes_in_graph(trainer, strategy) == scaling_contestants.bytes_of(trainer)
    graph = scaling_contestants._compiled(strategy, trainer._reduce).get_concrete_function().graph
    assert len(scaling_contestants.collective_operations(graph)) == 2 * packs


def test_one_replica_is_measured_and_reduces_nothing(tiny_config):
    config = changed(tiny_config, "runtime", deterministic=False)
    (found,) = scaling_contestants.measure_on(replicas(1), [config], 2)
    assert found["step"] > 0
    assert (found["all_reduce"], found["small"], found["packs"], found["small_reduces"]) == (0, 0, 0, 0)
    assert found["bytes"] > 1e5


@pytest.mark.slow
def test_two_workers_are_measured(tiny_config):
    config = ScalingConfig(scaling_steps=1)
    given = scaling._config(tiny_config, WORKERS, 2, 8)
    (found,) = scaling._of_processes(WORKERS, 2, [given], config)
    assert min(found["step"], found["all_reduce"], found["small"]) > 0
    assert found["packs"] == 1
    assert found["small_reduces"] > 0


def found_somewhere():
    """What a measurement found: three points, of which one is far from what was predicted."""
    point = {"kind": REPLICAS, "scaling": "both", "batch_size": 8, "bytes": 4e6, "small_reduces": 3, "all_reduce": 0.01}
    numbers = ((1, 0.50, 0.5), (2, 0.50, 0.5), (3, 0.4, 0.6))
    points = [{**point, "number": n, "step": step, "predicted": predicted} for n, step, predicted in numbers]
    row = {"batch_size": 8, "compute": 0.1, "gradients": 0.1, "norms": 0.0, "input": 0.0, "images_per_second": 10.0,
           "efficiency": 0.5, "efficiency_in_float16": 0.6, "hidden": 0.7}  # fmt: skip
    kinds = (("weak", "compute", "compute", "network"), ("strong", "input", "network", "network"))
    predictions = [
        {**row, "scaling": scaling, "gpus": 2**power, "bottleneck": bottleneck}
        for scaling, *bottlenecks in kinds
        for power, bottleneck in enumerate(bottlenecks)
    ]
    model = {"fixed": 0.01, "per_image": 0.02, "efficiency": {REPLICAS: 1.2},
             "links": {REPLICAS: {"latency": 1e-5, "bandwidth": 2e9}}}  # fmt: skip
    variant = {"title": "2 replicas", "step": 0.5, "all_reduce": 0.01, "bytes": 4e6, "packs": 1}
    return {"points": points, "predicted_all_reduce": [0.0, 0.01, 0.02], "variants": [variant], "input_per_host": 900.0,
            "model": model, "predictions": predictions}  # fmt: skip


def test_tables_set_predicted_beside_measured_and_name_bottlenecks(tmp_path):
    lines = scaling_tables.tables([found_somewhere()]).splitlines()
    assert "| 1 replica | both | 8 | 0.500 | 0.500 | +0% | 10.0 | 0.0 | fitted |" in lines
    assert "| 3 replicas | both | 8 | 0.400 | 0.600 | +50% | 10.0 | 20.0 | held out |" in lines
    assert "0 of the 1 points held out are within 20%; the worst is 50% off" in lines
    assert "- weak scaling: compute from 1 GPU on, then network from 4 GPUs on" in lines
    assert "- strong scaling: input from 1 GPU on, then network from 2 GPUs on" in lines
    scaling_tables.draw([json.loads(json.dumps(found_somewhere()))], str(tmp_path / "plot.png"))
    assert Image.open(tmp_path / "plot.png").width == 1100
