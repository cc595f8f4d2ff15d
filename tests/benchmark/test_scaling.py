"""--measure=scaling: flags, measurements and tables."""

import pytest
from conftest import changed, random_examples, replicas
from trainers import make_trainer

from petseg.benchmark import __main__ as program, scaling, scaling_contestants
from petseg.benchmark.scaling import ScalingConfig
from petseg.benchmark.scaling_model import REPLICAS, WORKERS
from petseg.config import command_line
from petseg.errors import ConfigError
from petseg.training.variables import moving_statistics


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scaling_numbers=1,3"], "--scaling_numbers=1,3: must be different numbers from 1 on, 1 and 2 among them"),
        (["--scaling_numbers=0,1,2"], "--scaling_numbers=0,1,2: must be different numbers from 1 on"),
        (["--scaling_numbers=1,2,x"], "--scaling_numbers=1,2,x: must be different numbers from 1 on"),
        (["--batch_size=30"], "--batch_size=30: must be a multiple of the largest of --scaling_numbers, 4"),
        (["--batch_size=4"], "--batch_size=4: must be a multiple of the largest of --scaling_numbers, 4, and at least"),
        (["--interconnect_gb=25,0"], "--interconnect_gb=25,0: must be numbers above 0, separated by commas"),
        (["--gpus_per_node=1.5"], "--gpus_per_node=1.5: must be whole numbers above 0, separated by commas"),
        (["--intra_node_us=-1"], "--intra_node_us=-1: must be numbers of at least 0, separated by commas"),
        (
            ["--gpus_per_node=4,8", "--interconnect_gb=1,2,3"],
            "--gpus_per_node=4,8: must be one number, or one for each of 3 machines",
        ),
    ],
)
def test_invalid_flags_of_scaling_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        command_line.parse(["benchmark", "--measure=scaling", *flags], program.BenchmarkConfig)


def test_batches_of_weak_and_strong_scaling():
    found = [scaling.batch_sizes(64, number, 4) for number in (1, 2, 3, 4)]
    assert found == [{16: "weak", 64: "strong"}, {32: "weak", 64: "strong"}, {48: "weak", 63: "strong"}, {64: "both"}]


def test_machines_are_those_of_the_flags():
    config = ScalingConfig(
        gpus_per_node="4", interconnect_gb="2,50", interconnect_us="3", input_images_per_second="0,7"
    )
    slow, fast = config.machines(500.0)
    assert (slow.gpus_per_node, slow.between.bandwidth, slow.between.latency) == (4, 2e9, 3e-6)
    assert (fast.gpus_per_node, fast.between.bandwidth, fast.between.latency) == (4, 5e10, 3e-6)
    assert (slow.input_per_host, fast.input_per_host) == (500, 7)
    assert slow.description().startswith("400 images/s a GPU, 4 a node, 2 GB/s and 3 us between nodes, 500 images/s")


@pytest.mark.parametrize(("dtype", "packs"), [("float32", 1), pytest.param("float16", 2, marks=pytest.mark.slow)])
def test_all_reduce_bytes_are_those_of_gradients_and_sums(dtype, packs):
    trainer, strategy, _ = make_trainer(
        2, examples=random_examples(8), batch_size=8, sync_batch_norm=False, all_reduce_dtype=dtype
    )
    weights = sum(int(weight.size) for weight in trainer.weights().values())
    statistics = sum(int(variable.numpy().size) for variable in moving_statistics(trainer.model))
    scalars = 2 + 2  # loss and denominator; requests to stop and to save
    gradient = 4 if dtype == "float32" else 2
    assert scaling_contestants.all_reduce_bytes(trainer) == gradient * weights + 4 * (statistics + scalars)
    graph = scaling_contestants.reduce_graph(trainer, strategy)
    assert len(scaling_contestants.collective_operations(graph)) == 2 * packs
    operations = [operation for operation in graph.get_operations() if operation.type.startswith("CollectiveReduce")]
    values = [operation.inputs[0] for operation in operations]  # of both replicas
    assert sum(
        value.shape.num_elements() * value.dtype.size for value in values
    ) == 2 * scaling_contestants.all_reduce_bytes(trainer)


def test_one_replica_is_measured_and_reduces_nothing(tiny_config):
    config = changed(tiny_config, "runtime", deterministic=False)
    (found,) = scaling_contestants.measure_on(replicas(1), [config], 2)
    assert min(found["step"], found["busy"]) > 0
    assert (found["all_reduce"], found["small"], found["packs"], found["small_reduces"]) == (0, 0, 0, 0)
    assert found["bytes"] > 1e5


@pytest.mark.slow
def test_two_workers_are_measured(tiny_config):
    given = scaling.replicated_config(tiny_config, WORKERS, 2, 8)
    (found,) = scaling.measure_steps(WORKERS, 2, [given], steps=1)
    assert min(found["step"], found["all_reduce"], found["small"]) > 0
    assert found["packs"] == 1
    assert found["small_reduces"] > 0


def example_results():
    """Results of a measurement: three points, one of which is far from its prediction."""
    point = {
        "kind": REPLICAS, "scaling": "both", "batch_size": 8, "bytes": 4e6, "small_reduces": 3, "all_reduce": 0.01,
        "predicted_all_reduce": 0.02, "predicted_network": 0.03, "busy": 0.7, "predicted_busy": 0.8,
    }  # fmt: skip
    numbers = ((1, 0.50, 0.5), (2, 0.50, 0.5), (3, 0.4, 0.6))
    points = [
        {**point, "number": n, "step": step, "predicted": guess, "error": guess / step - 1, "fitted": n == 1}
        for n, step, guess in numbers
    ]
    row = {"batch_size": 8, "compute": 0.1, "gradients": 0.1, "norms": 0.0, "input": 0.0,
           "images_per_second": 10.0, "efficiency": 0.5}  # fmt: skip
    kinds = (("weak", "compute", "compute", "network"), ("strong", "input", "network", "network"))
    predictions = [
        {**row, "scaling": scaling, "gpus": 2**power, "bottleneck": bottleneck}
        for scaling, *bottlenecks in kinds
        for power, bottleneck in enumerate(bottlenecks)
    ]
    machines = [{**row, "machine": machine} for machine in ("fast", "slow") for row in predictions]
    return {"points": points, "input_per_host": 900.0, "predictions": machines}


def test_tables_set_predicted_beside_measured_and_name_bottlenecks():
    lines = scaling.tables([example_results()]).splitlines()
    assert "| 1 replicas | both | 8 | 500 | 500 | 30.0 | +0% | 700 | 800 | 10.0 | 20.0 | True |" in lines
    assert "| 3 replicas | both | 8 | 400 | 600 | 30.0 | +50% | 700 | 800 | 10.0 | 20.0 | False |" in lines
    for machine in ("fast", "slow"):
        first = lines.index(f"Predicted: {machine}") + 4
        bottlenecks = [line.split(" | ")[-1].removesuffix(" |") for line in lines[first : first + 6]]
        assert bottlenecks == ["compute", "compute", "network", "input", "network", "network"]
