import pytest
import tensorflow as tf
from conftest import own_lines, run_program, tiny_flags

from petseg.config import DistributionConfig
from petseg.errors import ConfigError
from petseg.runtime import strategies


def test_one_device_is_what_a_machine_without_several_gpus_gets():
    placement = strategies.set_up(DistributionConfig())
    assert isinstance(placement.strategy, tf.distribute.OneDeviceStrategy)
    assert placement.is_chief
    assert placement.gather(3) == [3]


@pytest.mark.parametrize("name", ["hierarchical_copy", "reduction_to_one_device"])
def test_cross_device_ops_are_those_asked_for(name):
    config = DistributionConfig(strategy="mirrored", cross_device_ops=name)
    used = strategies.set_up(config).strategy.extended._cross_device_ops
    assert type(used).__name__.lower().startswith(name.replace("_", ""))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"strategy": "tpu"}, "--strategy=tpu: TensorFlow finds no TPU here"),
        ({"strategy": "parameter_server"}, "--strategy=parameter_server: .* must be multi_worker_mirrored"),
        ({"strategy": "central_storage"}, "--strategy=central_storage: .* must be mirrored"),
        ({"strategy": "mirrored", "num_devices": 9}, "--num_devices=9: there are 1 .* --virtual_devices=9 splits one"),
        ({"strategy": "mirrored", "cross_device_ops": "nccl"}, "--cross_device_ops=nccl: there must be GPUs"),
        ({"strategy": "mirrored", "cross_device_ops": "ring"}, "--cross_device_ops=ring: with --strategy=mirrored"),
        ({"strategy": "one_device", "num_devices": 2}, "--num_devices=2: must be 1 with --strategy=one_device"),
        ({"strategy": "multi_worker_mirrored"}, "by TF_CONFIG or as Slurm's srun does, and has neither"),
    ],
)
def test_what_this_machine_cannot_run_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        strategies.set_up(DistributionConfig(**config))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--strategy=tpu"], "--strategy=tpu: TensorFlow finds no TPU here, and petseg has never run on one"),
        (["--virtual_devices=3"], "--batch_size=8: takes a multiple of the 3 replicas"),
        (["--virtual_devices=2", "--micro_batches=3"], "--micro_batches=3: takes a divisor of the 4 examples"),
        (["--virtual_devices=2", "--jit_compile"], "--jit_compile: with 2 replicas takes --nosync_batch_norm"),
        (["--virtual_devices=2", "--num_devices=3"], "--num_devices=3: there are 2"),
    ],
)
def test_a_program_refuses_in_one_line_and_leaves_no_trace(data_dir, tmp_path, flags, message):
    result = run_program("train.py", *tiny_flags(data_dir, tmp_path / "run"), "--train_steps=1", *flags)
    assert result.returncode == 2
    (line,) = own_lines(result.stderr)
    assert line.startswith(f"train.py: error: {message}")
    assert not (tmp_path / "run").exists()
