"""Prints a table of the networks: weights, multiply-adds, memory, and images per second on this machine.

    python -m petseg.models --encoders=mobilenet_v2,convnext_tiny --decoders=lighter --image_size=256

Networks have random weights and are measured in float32: prediction, and the gradients of all weights. The memory of a
training step is that of weights, gradients and activations of a batch, from the shapes in the graph; an optimizer's
moments (twice the weights for Adam) and what kernels and TensorFlow allocate come on top.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from petseg.config import command_line
from petseg.config.data_config import picture_size
from petseg.config.model_config import DECODERS, ENCODERS, ModelConfig
from petseg.config.options import Group, near_names, option
from petseg.errors import ConfigError
from petseg.runtime import startup

TITLES = (
    "encoder", "decoder", "weights", "of the encoder", "G multiply-adds", "MiB of a training step", "predicts images/s",
    "trains images/s",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TableConfig(Group):
    """Which networks, and how they are measured."""

    encoders: str = option("", "encoders, separated by commas; empty: all")
    decoders: str = option("", "decoders, separated by commas; empty: all")
    image_size: str = option("128", "a side or `HEIGHT,WIDTH`, multiples of 32", unit="pixels")
    num_classes: int = option(3, "number of classes", minimum=2, maximum=254)
    batch_size: int = option(8, "images in a batch", minimum=1)
    seconds: float = option(1.0, "time for which each speed is measured; 0: not measured", unit="s", minimum=0)
    debug: bool = option(False, "show the traceback of an error that is otherwise one line")

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(ModelConfig):
            for name in filter(None, getattr(self, f"{field.name}s", "").split(",")):
                allowed = dataclasses.replace(field.metadata["allowed"], code="")
                if not allowed.admits(name, str):
                    must = f"must be {allowed.words(str)}, separated by commas{near_names(name, allowed.names())}"
                    raise ConfigError(f"--{field.name}s={name}: {must}")


def main(config: TableConfig) -> None:
    """Prints the table, row by row."""
    size = picture_size("image_size", config.image_size)
    startup.load_tensorflow(show_greetings=config.debug)
    print(f"| {' | '.join(TITLES)} |\n|{' --- |' * len(TITLES)}")
    for cells in _rows(config, size):
        print(f"| {' | '.join(cells)} |", flush=True)


def _rows(config: TableConfig, size: tuple[int, int]) -> Iterator[list[str]]:
    from petseg.models import encoders, unet

    for name in config.encoders.split(",") if config.encoders else ENCODERS:
        for decoder in config.decoders.split(",") if config.decoders else DECODERS:
            encoder = encoders.build_encoder(name, image_size=size)
            model = unet.build_unet(
                image_size=size,
                num_classes=config.num_classes,
                encoder=encoder,
                train_encoder=True,
                input_scaling="unit",
                decoder=decoder,
            )
            weights = f"{model.count_params():,}", f"{encoder.count_params():,}"
            yield [name, decoder, *weights, *_measured(model, config)]


def _measured(model: Any, config: TableConfig) -> list[str]:
    """Multiply-adds for an image, memory of a step, and images per second of prediction and of gradients."""
    import tensorflow as tf

    from petseg.training import flops, graph_memory

    images = tf.random.uniform([config.batch_size, *model.input_shape[1:]], maxval=255.0)

    @tf.function(autograph=False)
    def predict(images: tf.Tensor) -> tf.Tensor:
        return model(images, training=False)

    @tf.function(autograph=False)
    def gradients(images: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(images, training=True))
        return tape.gradient(loss, [weight.value for weight in model.trainable_weights])

    operations = flops.flops(predict.get_concrete_function(images).graph) / config.batch_size
    activations = graph_memory.peak_bytes(gradients.get_concrete_function(images).graph)
    memory = activations + sum(weight.value.dtype.size * math.prod(weight.shape) for weight in model.weights)
    speeds = [_speed(function, images, config.seconds) for function in (predict, gradients)] if config.seconds else []
    costs = f"{operations / 2e9:.2f}", f"{memory / 2**20:,.0f}"
    return [*costs, *(f"{speed:.3g}" for speed in speeds), *["-"] * (2 - len(speeds))]


def _speed(function: Callable[[Any], Any], images: Any, seconds: float) -> float:
    """Images per second, without the first call, which compiles."""
    import tensorflow as tf

    def run() -> None:
        for tensor in tf.nest.flatten(function(images)):
            tensor.numpy()  # waits for a GPU

    run()
    start, calls = time.perf_counter(), 0
    while calls < 1 or time.perf_counter() - start < seconds:
        run()
        calls += 1
    return calls * len(images) / (time.perf_counter() - start)


if __name__ == "__main__":
    command_line.run(main, TableConfig, __doc__)
