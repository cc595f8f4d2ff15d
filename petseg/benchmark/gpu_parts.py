"""What the processes of --measure=gpu do; each function sends its rows as it finds them."""

import functools
import gc
import hashlib
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

import petseg
from petseg.benchmark import contestants, time_to_score_contestants
from petseg.benchmark.time_to_score import TimeToScoreConfig
from petseg.config import Config
from petseg.data import to_array_record
from petseg.data.synthetic_pets import SyntheticPets
from petseg.data.to_array_record import ConversionConfig
from petseg.errors import PetsegError, one_line
from petseg.reporting import summaries, telemetry
from petseg.runs import train
from petseg.runtime import cpus, gpu_diagnosis, gpu_peaks, process_setup
from petseg.training import flops
from petseg.training.trainer import Trainer

Send = Callable[[dict[str, Any] | None], None]
TRIVIAL = {
    "Const", "Identity", "IdentityN", "NoOp", "Placeholder", "ReadVariableOp", "Reshape", "Shape", "StopGradient"
}  # fmt: skip
PROFILED_STEPS = 3
SERIES = ("loss", "optimization/skipped_steps", "optimization/loss_scale")
OVERFLOW_AT = 2  # the step whose images are infinite on the second of two replicas


def serve(connection: Connection, name: str, *arguments: Any) -> None:
    """Runs a function of this module for another process; sends its rows, then None."""
    globals()[name](connection.send, *arguments)
    connection.send(None)


def draw(send: Send, folder: str, number: int) -> None:
    """Draws a data set, so that all parts but the time to a score need no other."""
    SyntheticPets(num_train=number, num_test=max(number // 8, 8), data_dir=folder).download_and_prepare()


def devices(send: Send, config: Config) -> None:
    """Versions, devices and what they should reach."""
    placement = process_setup.set_up_runtime(config, config.distribution)
    built = tf.sysconfig.get_build_info()
    rows = {
        "devices": placement.description(),
        "petseg, TensorFlow, Keras": f"{petseg.__version__}, {tf.__version__}, {keras.__version__}",
        "Python": platform.python_version(),
        "CUDA, cuDNN": f"{built.get('cuda_version', 'none')}, {built.get('cudnn_version', 'none')}",
        "cores, memory": f"{cpus.usable_cpus()}, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "warnings": "; ".join(gpu_diagnosis.warnings()) or "none",
    }
    for gpu in tf.config.get_visible_devices("GPU"):
        rows[gpu.name] = str(tf.config.experimental.get_device_details(gpu))
    for precision in ("float32", "mixed_float16", "mixed_bfloat16"):
        peak = gpu_peaks.peak_of_visible_devices(config.changed(compute={"precision": precision}))
        rows[f"peak, {precision}"] = f"{peak:g} TFLOP/s" if peak else "unknown"
    for title, value in rows.items():
        send({"what": title, "value": value})


def speed(send: Send, config: Config, batch_sizes: Sequence[int], seconds: float, profiled: bool) -> None:
    """Steps of the compiled loop on one batch in memory, for several batch sizes."""
    strategy = process_setup.set_up_runtime(config, config.distribution).strategy
    for size in batch_sizes:
        try:
            each = config.changed(data={"batch_size": size})
            row = _speed(each, strategy, seconds, profiled and size == batch_sizes[0])
        except Exception as error:  # such as a batch that does not fit into memory
            row = {"error": one_line(error)}
        send({"batch": size, **row})
        keras.backend.clear_session()
        gc.collect()


def _speed(config: Config, strategy: tf.distribute.Strategy, seconds: float, profiled: bool) -> dict[str, Any]:
    began = time.perf_counter()
    trainer, batches = contestants.trainer_and_batches(config, strategy)
    trainer.run(batches, 1)
    ready_after = time.perf_counter() - began
    for device in tf.config.list_logical_devices("GPU"):
        tf.config.experimental.reset_memory_stats(device.name.removeprefix("/device:"))
    step = _seconds_of_a_step(lambda steps: trainer.run(batches, steps), seconds)
    images_per_second = config.data.batch_size / step
    peak = gpu_peaks.peak_of_visible_devices(config)
    model = telemetry.model_speed(images_per_second, trainer.flops_per_image(batches), peak)
    memory = telemetry.memory()
    kinds = Counter(operation.type for operation in flops.needed(trainer.loop.graph(batches)))
    return {
        "images/s": images_per_second,
        "TFLOP/s": model.get("speed/model_tflops"),
        "MFU": model.get("speed/mfu"),
        "peak memory, MiB": memory.get("memory/device", memory["memory/host"]),
        "ops a step": sum(number for kind, number in kinds.items() if kind not in TRIVIAL),
        "launches a step": launches(trainer, batches) if profiled else None,
        "ready after, s": ready_after,
    }


def _seconds_of_a_step(work: Callable[[int], Any], seconds: float) -> float:
    """Seconds of a step, over as many steps as fit into some seconds, after a warm-up."""
    work(contestants.WARM_UP)
    began = time.perf_counter()
    work(2)
    steps = max(2, int(seconds / (time.perf_counter() - began) * 2))
    began = time.perf_counter()
    work(steps)
    return (time.perf_counter() - began) / steps


def launches(trainer: Trainer, batches: Any) -> float | None:
    """Kernels, copies and fills that a step starts on the GPU, as TensorFlow's profiler sees them; None on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        trainer.run(batches, PROFILED_STEPS)
        tf.profiler.experimental.stop()
        (file,) = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
    lines = [line for plane in space.planes if plane.name.startswith("/device:GPU") for line in plane.lines]
    number = sum(len(line.events) for line in lines if line.name.startswith("Stream"))
    return number / PROFILED_STEPS if lines else None


def beside(send: Send, config: Config, seconds: float) -> None:
    """The whole loop beside its step alone, a loop without bookkeeping, and `model.fit`; the same network and batch."""
    for title, prepare in (
        ("petseg, whole loop", contestants.whole_loop),
        ("petseg, step alone", contestants.bare_step),
        ("bare loop", contestants.plain_loop),
        ("model.fit", contestants.fit_in_memory),
        ("model.fit, jit_compile=False", functools.partial(contestants.fit_in_memory, jit_compile=False)),
    ):
        try:
            step = _seconds_of_a_step(prepare(config), seconds)
            send({"loop": title, "images/s": config.data.batch_size / step})
        except Exception as error:
            send({"loop": title, "error": one_line(error)})


def input_speed(send: Send, config: Config, scratch: str, seconds: float) -> None:
    """The training input alone, with each --cache."""
    data = config.data
    for cache in ("memory", "disk", "none"):
        try:
            folder = data.data_dir
            if cache == "none":
                folder = os.path.join(scratch, "array_record")
                to_array_record.main(ConversionConfig(dataset=data.dataset, data_dir=data.data_dir, output_dir=folder))
            changes = {"cache": cache, "cache_dir": os.path.join(scratch, "cache"), "data_dir": folder}
            step = _seconds_of_a_step(contestants.petseg_input(config.changed(data=changes)), seconds)
            send({"cache": cache, "data": data.dataset, "images/s": data.batch_size / step})
        except PetsegError as error:
            send({"cache": cache, "error": str(error)})


def trained(send: Send, config: Config) -> None:
    """A whole run: its losses, a digest of its last checkpoint, its scale of the loss, the number of its replicas."""
    run = contestants.set_up_run(config)
    train.train_run(run)
    rows = list(summaries.read_csv(run.workdir.metrics_file, lambda run, tag: run == summaries.TRAIN))
    series = {tag: [value for *_, logged, value in rows if logged == tag] for tag in SERIES}
    newest = run.checkpoints.newest()
    reader, digest = tf.train.load_checkpoint(newest), hashlib.sha256()
    for name in sorted(reader.get_variable_to_shape_map()):
        value = np.asarray(reader.get_tensor(name))
        if value.dtype.kind in "biuf":  # not the names of objects, which a process numbers
            digest.update(name.encode() + value.tobytes())
    replicas = run.placement.strategy.num_replicas_in_sync
    send({"series": series, "digest": digest.hexdigest(), "replicas": replicas})


def overflow(send: Send, config: Config) -> None:
    """A run on two replicas; at one step the images of the second are infinite."""
    genuine, half = Trainer.prepare_batch, config.data.batch_size // 2

    def prepare(self: Trainer, batch: dict[str, tf.Tensor], step: tf.Tensor) -> Any:
        images, *rest = genuine(self, batch, step)
        hit = (step == OVERFLOW_AT) & (batch["position"] >= half)
        return (tf.where(hit[:, None, None, None], float("inf"), images), *rest)

    Trainer.prepare_batch = prepare  # type: ignore[method-assign]
    trained(send, config)


def time_to(send: Send, config: Config, target: float, score_every: int, began: float) -> None:
    """Trains until a score holds at two evaluations in a row; sends each score."""
    timer = time_to_score_contestants.Timer(began, target, send)
    time_to_score_contestants.whole_loop(config, TimeToScoreConfig(target=target, score_every=score_every), timer)
