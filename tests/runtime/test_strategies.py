import re
from types import SimpleNamespace

import pytest
import tensorflow as tf
from conftest import own_lines, replicas, tiny_flags
from programs_in_forks import run

from petseg.config import Config, DistributionConfig, command_line
from petseg.config.eval_config import EvalConfig
from petseg.errors import ConfigError
from petseg.runs import building
from petseg.runtime import strategies


def test_one_device_is_what_a_machine_without_several_gpus_gets():
    placement = strategies.set_up(DistributionConfig())
    assert isinstance(placement.strategy, tf.distribute.OneDeviceStrategy)
    assert placement.is_chief
    assert placement.gather(3) == [3]


@pytest.mark.parametrize("name", ["hierarchical_copy", "reduction_to_one_device"])
def test_cross_device_ops_follow_the_flag(name):
    config = DistributionConfig(strategy="mirrored", cross_device_ops=name)
    used = strategies.set_up(config).strategy.extended._cross_device_ops
    assert type(used).__name__.lower().startswith(name.replace("_", ""))


class FakeDevices:
    """What stands for TensorFlow on a machine with so many GPUs."""

    def __init__(self, monkeypatch, number):
        self.physical = [SimpleNamespace(name=f"GPU:{i}") for i in range(number)]
        self.visible, self.parts, self.growth = list(self.physical), {}, {}
        monkeypatch.setattr(
            tf.config, "list_physical_devices", lambda kind: self.physical if kind == "GPU" else ["CPU"]
        )
        monkeypatch.setattr(tf.config, "set_visible_devices", self._set_visible)
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: self.visible)
        monkeypatch.setattr(
            tf.config, "set_logical_device_configuration", lambda device, parts: self.parts.update({device.name: parts})
        )
        monkeypatch.setattr(tf.config, "get_logical_device_configuration", lambda device: self.parts.get(device.name))
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: self._logical())
        monkeypatch.setattr(
            tf.config.experimental, "set_memory_growth", lambda device, on: self.growth.update({device.name: on})
        )
        monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: {"device_name": "NVIDIA H100"})
        monkeypatch.setattr(tf.distribute, "OneDeviceStrategy", lambda name: self._strategy([name], None))
        monkeypatch.setattr(
            tf.distribute, "MirroredStrategy", lambda names, cross_device_ops: self._strategy(names, cross_device_ops)
        )

    def _set_visible(self, devices, kind):
        self.visible = devices

    def _logical(self):
        number = sum(len(self.parts.get(device.name, [None])) for device in self.visible)
        return [SimpleNamespace(name=f"/device:GPU:{i}") for i in range(number)]

    def _strategy(self, names, cross_device_ops):
        return SimpleNamespace(names=names, cross_device_ops=cross_device_ops, num_replicas_in_sync=len(names))


def visible(devices):
    return [device.name for device in devices.visible]


def test_one_device_leaves_the_memory_of_the_other_gpus_alone(monkeypatch):
    devices = FakeDevices(monkeypatch, 8)
    placement = strategies.set_up(DistributionConfig(strategy="one_device"))
    assert visible(devices) == ["GPU:0"]
    assert devices.growth == {"GPU:0": True}
    assert placement.strategy.names == ["/device:GPU:0"]
    assert placement.description() == "1 GPU (NVIDIA H100)"


@pytest.mark.parametrize("strategy", ["auto", "mirrored"])
def test_all_gpus_of_a_machine_are_summed_by_what_tensorflow_chooses(monkeypatch, strategy):
    devices = FakeDevices(monkeypatch, 8)
    placement = strategies.set_up(DistributionConfig(strategy=strategy))
    assert len(visible(devices)) == len(devices.growth) == len(placement.strategy.names) == 8
    assert placement.strategy.cross_device_ops is None  # TensorFlow's default, which is NCCL on unsplit GPUs
    assert placement.all_reduce == "NCCL"
    assert placement.description() == "8 GPUs (NVIDIA H100); 8 replicas"


@pytest.mark.parametrize(
    ("gpus", "batch_size", "micro_batches", "used", "says"),
    [
        (8, 64, 1, 8, ""),
        (2, 64, 2, 2, ""),
        (1, 7, 1, 1, ""),
        (8, 8, 1, 1, "uses 1 (GPU 0) of 8 GPUs, 8 examples each of --batch_size=8: all 8 would have 1 each "
         "(at least 8 are sensible); to use all: --batch_size=64, or --strategy=mirrored"),
        (6, 64, 1, 4, "uses 4 (GPU 0 to 3) of 6 GPUs, 16 examples each of --batch_size=64: 6 do not divide them "
         "(at least 8 are sensible); to use all: --batch_size=66"),
        (7, 16, 1, 2, "to use all: --batch_size=56"),
        (5, 64, 1, 4, "to use all: --batch_size=65"),
        (3, 13, 1, 1, "13 examples each of --batch_size=13: 3 do not divide them"),
        (4, 64, 4, 2, "uses 2 (GPU 0 to 1) of 4 GPUs, 32 examples each of --batch_size=64: all 4 would have 4 each "
         "(at least 8 are sensible); to use all: --batch_size=128, or --strategy=mirrored"),
    ],
)  # fmt: skip
def test_auto_uses_the_most_gpus_that_divide_the_batch_and_logs_how_to_use_all(
    monkeypatch, caplog, gpus, batch_size, micro_batches, used, says
):
    devices = FakeDevices(monkeypatch, gpus)
    with caplog.at_level("INFO", logger="petseg"):
        placement = strategies.set_up(DistributionConfig(), batch_size=batch_size, micro_batches=micro_batches)
    assert len(placement.strategy.names) == len(visible(devices)) == used
    assert says in caplog.text
    assert bool(says) == (used < gpus) == ("--strategy=auto" in caplog.text)


@pytest.mark.parametrize(
    "asked", [{"strategy": "mirrored"}, {"num_devices": 6}, {"num_devices": 6, "strategy": "auto"}]
)
def test_gpus_of_num_devices_are_all_used_for_any_batch(monkeypatch, asked):
    FakeDevices(monkeypatch, 6)
    assert len(strategies.set_up(DistributionConfig(**asked), batch_size=8).strategy.names) == 6


class DevicesInUse(FakeDevices):
    """What stands for TensorFlow after it has computed on its GPUs: its devices cannot be changed any more."""

    def __init__(self, monkeypatch, number):
        super().__init__(monkeypatch, number)
        for module, name in [
            (tf.config, "set_visible_devices"),
            (tf.config, "set_logical_device_configuration"),
            (tf.config.experimental, "set_memory_growth"),
        ]:
            monkeypatch.setattr(module, name, self._refuse)

    def _refuse(self, *_):
        raise RuntimeError("cannot be modified after being initialized")


@pytest.mark.parametrize(
    ("config", "used", "flags"),
    [
        ({}, 2, ["--memory_growth"] * 2),
        ({"memory_growth": False}, 2, ["--memory_growth"] * 2),
        ({"strategy": "one_device"}, 1, ["--num_devices", "--memory_growth"]),
        ({"strategy": "mirrored", "num_devices": 2}, 2, ["--memory_growth"] * 2),
        ({"virtual_devices": 1}, 1, ["--num_devices", "--virtual_devices"]),
    ],
)
def test_gpus_that_tensorflow_already_uses_are_used_as_they_are_with_a_warning(
    monkeypatch, caplog, config, used, flags
):
    DevicesInUse(monkeypatch, 2)
    assert len(strategies.set_up(DistributionConfig(**config)).strategy.names) == used
    assert [message.split(":")[0] for message in caplog.messages] == flags
    assert all("already set up in this process" in message for message in caplog.messages)


def test_a_gpu_that_was_split_before_petseg_came_is_no_error(monkeypatch, caplog):
    FakeDevices(monkeypatch, 1)

    def refuse(device, on):
        raise ValueError("Cannot set memory growth on device when virtual devices configured")

    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", refuse)
    assert strategies.set_up(DistributionConfig()).strategy.names == ["/device:GPU:0"]
    assert "--memory_growth: has no effect" in caplog.text


@pytest.mark.parametrize("count", [3, 8])
def test_more_parts_than_tensorflow_already_has_are_refused_by_name(monkeypatch, count):
    DevicesInUse(monkeypatch, 2)
    message = f"--virtual_devices={count}: TensorFlow is already initialised .* with 2 .*; must be at most 2, or be"
    with pytest.raises(ConfigError, match=message):
        strategies.set_up(DistributionConfig(virtual_devices=count))


def test_parts_that_tensorflow_already_has_are_not_too_late():
    tf.constant(0)  # TensorFlow runs, with the four parts of all tests
    placement = strategies.set_up(DistributionConfig(strategy="mirrored", virtual_devices=2))
    assert placement.strategy.num_replicas_in_sync == 2
    with pytest.raises(ConfigError, match="--virtual_devices=5: TensorFlow is already initialised"):
        strategies.set_up(DistributionConfig(virtual_devices=5))


def test_gpus_that_are_hidden_from_tensorflow_are_not_used(monkeypatch, caplog):
    devices = FakeDevices(monkeypatch, 4)
    tf.config.set_visible_devices(devices.physical[1:2], "GPU")
    assert strategies.set_up(DistributionConfig()).strategy.names == ["/device:GPU:0"]
    assert "uses 1 of this machine's devices" in caplog.text
    with pytest.raises(ConfigError, match="--num_devices=2: there are 1"):
        strategies.set_up(DistributionConfig(strategy="mirrored", num_devices=2))
    tf.config.set_visible_devices([], "GPU")
    assert strategies.computing_kind() == "CPU"


@pytest.mark.parametrize("number", [1, 2, 8])
def test_parts_of_one_gpu_are_never_summed_by_nccl(monkeypatch, number):
    """TensorFlow itself looks only whether there are more parts than the machine has GPUs."""
    devices = FakeDevices(monkeypatch, number)
    placement = strategies.set_up(DistributionConfig(virtual_devices=2, virtual_device_memory=1000))
    assert visible(devices) == ["GPU:0"]
    assert [part.memory_limit for part in devices.parts["GPU:0"]] == [1000, 1000]
    assert devices.growth == {}  # TensorFlow refuses it for parts
    assert placement.strategy.names == ["/device:GPU:0", "/device:GPU:1"]
    assert isinstance(placement.strategy.cross_device_ops, tf.distribute.ReductionToOneDevice)
    assert placement.all_reduce == "reduction_to_one_device"
    assert placement.description() == "1 GPU (NVIDIA H100), split in 2; 2 replicas"
    with pytest.raises(ConfigError, match="--cross_device_ops=nccl: with --virtual_devices=2 must be auto: NCCL"):
        strategies.set_up(DistributionConfig(virtual_devices=2, cross_device_ops="nccl"))


@pytest.mark.parametrize(
    ("flags", "implementation"),
    [
        ({}, "NCCL"),
        ({"virtual_devices": 2}, "RING"),
        ({"cross_device_ops": "nccl"}, "NCCL"),
        ({"cross_device_ops": "ring"}, "RING"),
    ],
)
def test_a_cluster_sums_by_nccl_wherever_unsplit_gpus_compute(monkeypatch, flags, implementation):
    FakeDevices(monkeypatch, 4)
    given = []
    cluster = SimpleNamespace(resolver=None, addresses={"worker 0": "", "worker 1": ""})
    monkeypatch.setattr(strategies.cluster_membership, "join", lambda gpus, **waiting: given.append(gpus) or cluster)

    def strategy(resolver, options):
        given.append(options.implementation)
        return SimpleNamespace(extended=SimpleNamespace())

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", strategy)
    placement = strategies.set_up(DistributionConfig(strategy="multi_worker_mirrored", **flags))
    assert placement.all_reduce.upper() == implementation  # as the line at the start says
    assert given == [flags.get("virtual_devices", 4), getattr(
        tf.distribute.experimental.CommunicationImplementation, implementation)]  # fmt: skip


@pytest.mark.parametrize("name", ["central_storage", "parameter_server", "tpu"])
@pytest.mark.parametrize("config_class", [Config, EvalConfig])
def test_a_strategy_that_is_not_supported_is_not_in_the_help_and_refused_with_those_that_are(config_class, name):
    assert not re.search(rf"\b{name}\b", command_line.help_text("train.py", "", config_class))
    with pytest.raises(ConfigError) as caught:
        command_line.parse(["train.py", "--workdir=runs/a", f"--strategy={name}"], config_class)
    assert str(caught.value).startswith(f"--strategy={name}: ")
    assert str(caught.value).endswith("(one of auto, one_device, mirrored, multi_worker_mirrored)")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"strategy": "tpu"}, "--strategy=tpu: TensorFlow finds no TPU here"),
        ({"strategy": "parameter_server"}, "--strategy=parameter_server: .* must be multi_worker_mirrored"),
        ({"strategy": "central_storage"}, "--strategy=central_storage: .* must be mirrored"),
        ({"strategy": "mirrored", "num_devices": 9}, "--num_devices=9: there are 1 .* --virtual_devices=9 splits one"),
        ({"strategy": "mirrored", "virtual_devices": 2, "num_devices": 3}, "--num_devices=3: there are 2 "),
        ({"strategy": "mirrored", "cross_device_ops": "nccl"}, "--cross_device_ops=nccl: there must be GPUs"),
        ({"strategy": "mirrored", "cross_device_ops": "ring"}, "--cross_device_ops=ring: with --strategy=mirrored"),
        ({"strategy": "one_device", "num_devices": 2}, "--num_devices=2: must be 1 with --strategy=one_device"),
        ({"strategy": "multi_worker_mirrored"}, "by TF_CONFIG or as Slurm's srun does, and has neither"),
    ],
)
def test_strategies_that_this_machine_cannot_run_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        strategies.set_up(DistributionConfig(**config))


@pytest.mark.parametrize(
    ("number", "compute", "message"),
    [
        (3, {}, "--batch_size=8: must be a multiple of the 3 replicas"),
        (2, {"micro_batches": 3}, "--micro_batches=3: must divide the 4 examples"),
        (2, {"jit_compile": True}, "--jit_compile: with 2 replicas --nosync_batch_norm must be given"),
    ],
)
def test_flags_that_do_not_suit_the_replicas_are_refused(tiny_config, number, compute, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        building.check_replicas(tiny_config.changed(compute=compute), replicas(number))


def test_a_program_refuses_in_one_line_and_leaves_no_trace(data_dir, tmp_path):
    flags = [*tiny_flags(data_dir, tmp_path / "run"), "--train_steps=1", "--virtual_devices=3"]
    result = run("train.py", *flags)
    assert result.returncode == 2
    *log, line = own_lines(result.stderr)
    assert line.startswith("train.py: error: --batch_size=8: must be a multiple of the 3 replicas")
    assert all(" computes on 1 CPU (" in other for other in log)
    assert len(log) <= 1
    assert not (tmp_path / "run").exists()
