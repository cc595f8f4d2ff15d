import logging

import pytest
import tensorflow as tf
from conftest import changed, tiny_flags

from petseg.config import Config, DistributionConfig, command_line
from petseg.runtime import gpu_diagnosis, host_allocator, process_setup, strategies


@pytest.fixture
def tensor_float_32():
    """A function that returns whether TensorFlow may use TF32, which is restored afterwards."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    yield tf.config.experimental.tensor_float_32_execution_enabled
    tf.config.experimental.enable_tensor_float_32_execution(before)


@pytest.fixture
def calls(monkeypatch):
    """Records settings of the whole process instead of making them."""
    made = []
    monkeypatch.setattr(host_allocator, "keep_freed_memory", lambda: made.append("keep_freed_memory"))
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: made.append("op_determinism"))
    return made


@pytest.mark.parametrize(
    ("flags", "used"),
    [
        ([], True),
        (["--notensor_float_32"], False),
        (["--deterministic"], False),
        (["--deterministic", "--tensor_float_32"], False),
    ],
)
def test_tf32_is_used_unless_a_flag_forbids_it(calls, tensor_float_32, flags, used):
    config = command_line.parse(["train.py", "--strategy=one_device", *flags], Config)
    process_setup.set_up_runtime(config, config.distribution)
    assert tensor_float_32() == used
    assert ("op_determinism" in calls) == config.runtime.deterministic


def test_the_flag_is_in_the_config_of_a_run(data_dir, tmp_path):
    flags = [*tiny_flags(data_dir, tmp_path), "--notensor_float_32"]
    assert command_line.parse(["train.py", *flags], Config).compute.tensor_float_32 is False
    assert Config().compute.tensor_float_32 is True  # as in TensorFlow, and in runs that did not know the flag


@pytest.mark.parametrize(("kind", "kept"), [("CPU", ["keep_freed_memory"]), ("GPU", [])])
def test_the_allocator_of_the_host_is_changed_only_where_no_gpu_trains(monkeypatch, calls, kind, kept):
    monkeypatch.setattr(strategies, "computing_kind", lambda: kind)
    placement = strategies.Placement(tf.distribute.get_strategy())
    monkeypatch.setattr(strategies, "set_up", lambda devices: placement)
    monkeypatch.setattr(strategies.Placement, "description", lambda self: kind)
    process_setup.set_up_runtime(Config(), DistributionConfig())
    assert calls == kept


def test_the_devices_are_one_line_of_the_log(calls, caplog):
    with caplog.at_level(logging.INFO, logger="petseg"):
        process_setup.set_up_runtime(Config(), DistributionConfig(strategy="mirrored", num_devices=1))
    (line,) = caplog.messages
    assert line.startswith("computes on 1 CPU (")
    assert line.endswith(" cores), split in 4")  # as all tests have it


def test_a_gpu_that_is_not_seen_is_warned_of(monkeypatch, calls, caplog):
    monkeypatch.setattr(gpu_diagnosis, "warning", lambda: "an NVIDIA driver is here, but")
    process_setup.set_up_runtime(Config(), DistributionConfig(strategy="one_device"))
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "an NVIDIA driver is here, but"
    ]


def test_how_replicas_are_summed_is_in_the_line_of_the_devices(monkeypatch, calls, caplog):
    batches = []

    def set_up(devices, **batch):
        batches.append(batch)
        return strategies.Placement(tf.distribute.get_strategy(), all_reduce="NCCL")

    monkeypatch.setattr(strategies, "set_up", set_up)
    monkeypatch.setattr(strategies.Placement, "description", lambda self: "8 GPUs; 8 replicas")
    config = changed(changed(Config(), "data", batch_size=24), "compute", micro_batches=3)
    with caplog.at_level(logging.INFO, logger="petseg"):
        process_setup.set_up_runtime(config, config.distribution)
        process_setup.set_up_runtime(config, config.distribution, trains=True)
    assert caplog.messages == ["computes on 8 GPUs; 8 replicas, summed by NCCL"] * 2
    assert batches == [{}, {"batch_size": 24, "micro_batches": 3}]  # an evaluation uses all devices


def test_determinism_on_a_gpu_logs_that_tf32_is_off(monkeypatch, calls, caplog, tensor_float_32):
    monkeypatch.setattr(strategies, "computing_kind", lambda: "GPU")
    monkeypatch.setattr(strategies, "set_up", lambda devices: strategies.Placement(tf.distribute.get_strategy()))
    monkeypatch.setattr(strategies.Placement, "description", lambda self: "1 GPU")
    config = changed(Config(), "runtime", deterministic=True)
    with caplog.at_level(logging.INFO, logger="petseg"):
        process_setup.set_up_runtime(config, config.distribution)
        process_setup.set_up_runtime(Config(), config.distribution)
    assert caplog.messages == ["computes on 1 GPU", "--deterministic: --tensor_float_32 is off", "computes on 1 GPU"]


def test_undivided_work_uses_one_device_with_any_flags(monkeypatch, calls):
    asked = []

    def set_up(devices):
        asked.append(devices)
        return strategies.Placement(tf.distribute.get_strategy())

    monkeypatch.setattr(strategies, "set_up", set_up)
    devices = DistributionConfig(strategy="mirrored", num_devices=2, cross_device_ops="hierarchical_copy")
    process_setup.set_up_runtime(Config(), devices, one_device=True)
    (used,) = asked
    assert used.strategy == "one_device"
