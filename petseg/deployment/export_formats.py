"""Export formats: how each is written and read back.

Loading `model.keras` or `model.h5` needs the layer defined here: `import petseg.export`.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from petseg import config as config_lib
from petseg.classes import Classes
from petseg.config.image_spec import PLAIN, ImageSpec
from petseg.deployment import onnx_conversion, onnx_runner
from petseg.deployment.onnx_half import half_precision
from petseg.models import inference
from petseg.models.layers import InferenceMode
from petseg.runs import packed_run
from petseg.runs.open_trained_run import load_model
from petseg.runs.packed_run import PackedRun

SIGNATURE = "serving_default"
MASK_AGREEMENT, MASK_AGREEMENT_INT8 = 0.999, 0.97

# A loaded export: images [B, H, W, C] in transport format -> the outputs of `Serving`.
Runner = Callable[[np.ndarray], Mapping[str, Any]]


@keras.saving.register_keras_serializable("petseg")
class Serving(InferenceMode):
    """The exported model: a network with its intensity range, scaling of pixels, softmax and argmax.

    Input: images in transport format, uint8 or uint16 [B, H, W, channels]. Output: `probabilities`, float32
    [B, H, W, C], and `mask`, class ids, uint8 [B, H, W].
    """

    def __init__(self, model: keras.Model, image_spec: ImageSpec = PLAIN, **kwargs: Any):
        super().__init__(model, **kwargs)
        self.image_spec = image_spec

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> Any:
        return predictions(self.model, inputs, self.image_spec)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "image_spec": dataclasses.asdict(self.image_spec)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Serving":
        values: Any = config.pop("image_spec", {})  # exports of earlier versions have none
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(keras.saving.deserialize_keras_object(config.pop("model")), ImageSpec(**values), **config)


class ExportContext(NamedTuple):
    """What a format may need besides the model: calibration images, the model card, and whether for any image size."""

    calibration: np.ndarray | None
    card: Mapping[str, Any]
    any_size: bool = False


class ExportFormat(NamedTuple):
    """An export format: file name, writer, reader, pip names of the modules it needs, whether it may be of any size."""

    file: str
    write: Callable[[Serving, Path, ExportContext], None]
    read: Callable[[Path], Runner]
    packages: Mapping[str, str] = {}
    least_agreement: float = MASK_AGREEMENT
    batch_size: int | None = None
    calibrated: bool = False
    any_size: bool = False


def predictions(model: keras.Model, images: tf.Tensor, image_spec: ImageSpec) -> dict[str, tf.Tensor]:
    """The outputs of `Serving`."""
    logits = inference.logits(model, images, image_spec=image_spec)
    # Not Keras's argmax: its handling of negative zeros uses operations that TFLite and ONNX lack.
    return {"probabilities": tf.nn.softmax(logits), "mask": tf.cast(tf.argmax(logits, axis=-1), tf.uint8)}


def _as_module(layer: Serving, batch: int | None, *, any_size: bool = False) -> tuple[tf.Module, Any]:
    """A module that holds the variables, and its function for images of a fixed or any number and size."""
    module = tf.Module()
    module.weights = [variable.value for variable in layer.variables]
    height, width, channels = layer.model.input_shape[1:]
    sides = (None, None) if any_size else (height, width)
    image = tf.TensorSpec([batch, *sides, channels], layer.image_spec.travels_as, name="image")
    module.call = tf.function(lambda image: layer(image), input_signature=[image])
    return module, module.call


def _write_saved_model(layer: Serving, path: Path, context: ExportContext) -> None:
    module, call = _as_module(layer, None, any_size=context.any_size)
    tf.saved_model.save(module, str(path), signatures={SIGNATURE: call})


def _read_saved_model(path: Path) -> Runner:
    loaded = tf.saved_model.load(str(path))
    return lambda images: loaded.signatures[SIGNATURE](image=tf.constant(images))


def _write_keras(layer: Serving, path: Path, _: ExportContext) -> None:
    image = keras.Input(layer.model.input_shape[1:], dtype=layer.image_spec.travels_as, name="image")
    keras.Model(image, layer(image), name="petseg").save(path)


def _read_keras(path: Path) -> Runner:
    loaded = keras.models.load_model(path, compile=False)
    return lambda images: loaded(images, training=False)


def _write_tflite(layer: Serving, path: Path, _: ExportContext) -> None:
    path.write_bytes(_tflite_converter(layer).convert())


def _write_tflite_int8(layer: Serving, path: Path, context: ExportContext) -> None:
    assert context.calibration is not None
    images = context.calibration
    converter = _tflite_converter(layer)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ({"image": image[None]} for image in images)
    with warnings.catch_warnings():  # the converter warns of an interpreter that it uses itself
        warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated")
        path.write_bytes(converter.convert())


def _tflite_converter(layer: Serving) -> Any:
    module, call = _as_module(layer, 1)
    return tf.lite.TFLiteConverter.from_concrete_functions([call.get_concrete_function()], module)


def _read_tflite(path: Path) -> Runner:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path)).get_signature_runner(SIGNATURE)

    return lambda images: runner(image=images)


def _write_onnx(layer: Serving, path: Path, context: ExportContext) -> None:
    _, call = _as_module(layer, None, any_size=context.any_size)
    model = onnx_conversion.convert(call)
    free = ("batch", "height", "width") if context.any_size else ("batch",)
    for value in (*model.graph.input, *model.graph.output):
        for dimension, name in zip(value.type.tensor_type.shape.dim, free, strict=False):
            dimension.dim_param = name
    model.metadata_props.add(key=onnx_runner.SIZE, value=",".join(map(str, layer.model.input_shape[1:3])))
    path.write_bytes(model.SerializeToString())


def _write_onnx_half(layer: Serving, path: Path, context: ExportContext) -> None:
    whole = path.with_suffix(".whole")
    _write_onnx(layer, whole, context)
    half_precision(whole, path)
    whole.unlink()


def _read_onnx(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"image": images}), strict=True))


def _write_weights(layer: Serving, path: Path, context: ExportContext) -> None:
    record = context.card["run"]
    config = config_lib.from_dict(record["config"])
    classes = Classes.from_dict(record.get("classes", {"classes": context.card["classes"]}), stored=True)
    card = {name: context.card[name] for name in ("step", "weights", "scores") if name in context.card}
    known = {**context.card, **record}
    card |= {name: known[name] for name in ("versions", "git_commit") if name in known}
    packed_run.pack(path, layer.model, config, classes, card)


def _read_weights(path: Path) -> Runner:
    run = PackedRun.open(path)
    model, _ = load_model(run, str(path))
    return lambda images: predictions(model, images, run.config.data.image_spec)


_LITERT, _ONNX = {"ai_edge_litert": "ai-edge-litert"}, {"tf2onnx": "tf2onnx", "onnxruntime": "onnxruntime"}
FORMATS: Mapping[str, ExportFormat] = {
    "saved_model": ExportFormat("saved_model", _write_saved_model, _read_saved_model, any_size=True),
    "keras": ExportFormat("model.keras", _write_keras, _read_keras),
    "h5": ExportFormat("model.h5", _write_keras, _read_keras),
    "tflite": ExportFormat("model.tflite", _write_tflite, _read_tflite, _LITERT, batch_size=1),
    "tflite_int8": ExportFormat(
        "model_int8.tflite", _write_tflite_int8, _read_tflite, _LITERT, MASK_AGREEMENT_INT8, 1, True
    ),
    "onnx": ExportFormat("model.onnx", _write_onnx, _read_onnx, _ONNX, any_size=True),
    "onnx_half": ExportFormat("model_half.onnx", _write_onnx_half, _read_onnx, _ONNX, any_size=True),
    "weights": ExportFormat(f"weights{packed_run.SUFFIX}", _write_weights, _read_weights),
}
