"""Exports models as SavedModel, Keras file, TFLite, ONNX or packed weights; each is read back and compared."""

import dataclasses
import importlib.util
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from petseg.config.eval_config import EXPORT_FORMATS
from petseg.config.image_spec import PLAIN, ImageSpec
from petseg.data.resizing import Resizing
from petseg.deployment.export_folder import check_replaceable, put_into_place, scratch_folder
from petseg.deployment.export_formats import FORMATS, ExportContext, Runner, Serving, predictions
from petseg.errors import ConfigError, ExportError, one_line
from petseg.files import explain_write_errors, move
from petseg.models.unet import accept_any_size

logger = logging.getLogger(__name__)
BATCH_SIZE = 16
LARGER = (32, 64)  # pixels that a second size has more: networks that need multiples of 32 or less take it, too

Compared = tuple[np.ndarray, dict[str, np.ndarray]]  # images, and the outputs of the model


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Result of comparing an export with its model."""

    format: str  # one of EXPORT_FORMATS
    path: str  # the file, or the folder
    largest_difference: float  # largest difference between probabilities
    mask_agreement: float  # fraction of the pixels with the same class
    size_mib: float  # size of the file, or of all files of the folder
    any_size: bool = False  # whether it takes images of any height and width that the network takes


def export(
    model: keras.Model,
    formats: Sequence[str],
    output_dir: str,
    examples: np.ndarray,
    *,
    calibration: np.ndarray | None,
    card: Mapping[str, Any],
    resize: str = "stretch",
    image_spec: ImageSpec = PLAIN,
    compared_on: str = "images",
    rebuild: Callable[[], keras.Model] | None = None,
) -> list[Agreement]:
    """Exports a model, reads each export back with its own runtime, and compares it with the model.

    Where format and network allow it, an export takes images of any height and width, and is compared at two sizes.
    Exports have the inputs and outputs of `Serving` and compute in float32, except where `tflite_int8` quantises; a
    mixed-precision model is compared in float32. A `model_card.json` describes them.

    Only unchanged files of earlier exports are replaced, and only by an export that agrees with the model.

    Args:
      model: float32 images [B, H, W, channels] in [0, 255] -> float32 logits [B, H, W, C].
      examples: images to compare on, [N, H, W, channels] in transport format.
      calibration: images [M, H, W, channels] to calibrate the activations of `tflite_int8`; None if not needed.
      rebuild: builds the network in float32 without synchronised batch norms, with any weights; None: Keras copies the
        model, which needs a `get_config` of each layer.

    Raises:
      ConfigError: if a format is unknown or needs a package that is not installed; nothing is written.
      WorkDirectoryError: if the output cannot be written.
      ExportError: before anything is written, if a file of the user is in the way; after all formats were tried, if one
        failed or disagrees with the model. A file that disagrees is kept only where there was none.
    """
    check_formats(formats)
    check_replaceable(Path(output_dir), [FORMATS[name].file for name in formats])
    layer = Serving(_float32_twin(model, rebuild), image_spec, trainable=False, name="petseg")
    original = model if model.dtype_policy.name == "float32" else layer.model
    expected = _run(lambda images: predictions(original, images, image_spec), examples, BATCH_SIZE)
    compared = [(examples, expected), *_at_second_size(layer, formats, examples)]
    agreements, failures = [], {}
    with explain_write_errors(output_dir, flag=f"--output_dir={output_dir}"), scratch_folder(Path(output_dir)) as made:
        for name in dict.fromkeys(formats):
            path = Path(output_dir, FORMATS[name].file)
            try:
                found = _write_and_compare(name, layer, made / path.name, ExportContext(calibration, card), compared)
            except Exception as error:  # converters and runtimes raise classes of their own, and bare ones
                failures[name] = f"{path}: {one_line(error)}"
                continue
            agreements.append(dataclasses.replace(found, path=str(path)))
            if not _agrees(found):
                failures[name] = _disagreement(agreements[-1])
        finished = [each for each in agreements if each.format not in failures or not os.path.lexists(each.path)]
        calibrated_on = 0 if calibration is None else len(calibration)
        facts = _facts(layer, finished, resize, f"{len(examples)} {compared_on}", calibrated_on=calibrated_on)
        names = {each.format: FORMATS[each.format].file for each in finished}
        put_into_place(made, names, {**card, **facts, "failures": failures})
    if failures:
        logger.warning("exports in %s:\n%s", output_dir, table(agreements))
        raise ExportError("; ".join(f"--export={name}: {reason}" for name, reason in failures.items()))
    return agreements


def write_onnx(
    model: keras.Model, path: Path, rebuild: Callable[[], keras.Model] | None = None, image_spec: ImageSpec = PLAIN
) -> None:
    """Exports a model as ONNX without comparing it; replaces any file at the path.

    Raises ExportError if it cannot be converted.
    """
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as scratch:
        twin, made = _float32_twin(model, rebuild), Path(scratch, path.name)
        layer = Serving(twin, image_spec, trainable=False, name="petseg")
        try:
            FORMATS["onnx"].write(layer, made, ExportContext(None, {}))
            move(made, path)
        except Exception as error:  # converters raise classes of their own, and bare ones
            raise ExportError(f"{path}: {one_line(error)}") from error


def check_formats(formats: Sequence[str]) -> None:
    """Raises ConfigError if a format is unknown or needs a package that is not installed."""
    for name in formats:
        if name not in EXPORT_FORMATS:
            raise ConfigError(f"--export={name}: no such format; must be some of {', '.join(EXPORT_FORMATS)}")
        packages = FORMATS[name].packages
        if any(importlib.util.find_spec(module) is None for module in packages):
            noun, names = "packages" if len(packages) > 1 else "package", " and ".join(packages.values())
            raise ConfigError(f"--export={name}: needs the {noun} {names}: pip install 'petseg[export]'")


def table(agreements: Sequence[Agreement]) -> str:
    """Formats agreements as a text table."""
    lines = [f"{'format':12}{'equal mask pixels':>19}{'largest difference':>20}{'MiB':>8}  path"]
    for a in agreements:
        numbers = f"{a.mask_agreement:19.5%}{a.largest_difference:20.2e}{a.size_mib:8.1f}"
        lines.append(f"{a.format:12}{numbers}  {a.path}")
    return "\n".join(lines)


def _float32_twin(model: keras.Model, rebuild: Callable[[], keras.Model] | None) -> keras.Model:
    """A float32 copy of a model without synchronised batch norms."""
    if rebuild is not None:
        twin = rebuild()
        shapes = [[tuple(weight.shape) for weight in each.weights] for each in (model, twin)]
        if shapes[0] != shapes[1]:
            raise ExportError("the network's function returned a model with other weights when it was called again")
        twin.set_weights(model.get_weights())
        return twin
    try:
        twin = type(model).from_config(_in_float32(model.get_config()))
    except Exception as error:  # a custom network may have layers that Keras cannot copy
        raise ExportError(
            "the network cannot be copied: its own layers must have a get_config, and be decorated with "
            f"@keras.saving.register_keras_serializable(): {one_line(error)[:200]}"
        ) from error
    twin.set_weights(model.get_weights())
    return twin


def _in_float32(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: False if key == "synchronized" else _in_float32(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(_in_float32(value) for value in config)
    return "float32" if config in ("mixed_float16", "mixed_bfloat16") else config


def _at_second_size(layer: Serving, formats: Sequence[str], examples: np.ndarray) -> list[Compared]:
    """Two images of another size and the network's outputs; none if no format or not the network takes other sizes."""
    if not any(FORMATS[name].any_size for name in formats):
        return []
    size = tuple(side + more for side, more in zip(examples.shape[1:3], LARGER, strict=True))
    images = tf.image.resize(examples[:2], size).numpy().astype(examples.dtype)
    try:
        accept_any_size(layer.model)
        outputs = _run(layer, images, BATCH_SIZE)
        if outputs["mask"].shape[1:] != size:
            raise ExportError(f"of images of {size} pixels it makes masks of {outputs['mask'].shape[1:]}")
    except Exception as error:  # a custom network may raise anything
        _log_fixed("the network takes", examples, error)
        return []
    return [(images, outputs)]


def _log_fixed(what: str, examples: np.ndarray, error: Exception) -> None:
    height, width = examples.shape[1:3]
    logger.info("%s images of %d x %d pixels only: %s", what, height, width, one_line(error)[:300])


def _write_and_compare(
    name: str, layer: Serving, path: Path, context: ExportContext, compared: Sequence[Compared]
) -> Agreement:
    """Writes an export and compares it: for any image size if it then agrees at a second one, else for the first."""
    kind, (first, *second) = FORMATS[name], compared
    if kind.any_size and second:
        try:
            kind.write(layer, path, context._replace(any_size=True))
            found = [_compare(name, path, *each) for each in compared]
            for agreement in found:
                if not _agrees(agreement):
                    raise ExportError(_disagreement(agreement))
            return dataclasses.replace(found[0], any_size=True)
        except Exception as error:  # converters and runtimes raise classes of their own, and bare ones
            _log_fixed(f"--export={name} takes", first[0], error)
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    kind.write(layer, path, context)
    return _compare(name, path, *first)


def _compare(name: str, path: Path, examples: np.ndarray, expected: dict[str, np.ndarray]) -> Agreement:
    kind = FORMATS[name]
    found = _run(kind.read(path), examples, kind.batch_size or BATCH_SIZE)
    for key, value in expected.items():
        if (found[key].dtype, found[key].shape) != (value.dtype, value.shape):
            raise ExportError(f"gives {key} as {found[key].dtype} {found[key].shape}")
    difference = np.abs(found["probabilities"] - expected["probabilities"]).max()
    same = found["mask"] == expected["mask"]
    size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
    return Agreement(name, str(path), float(difference), float(same.mean()), size / 2**20)


def _agrees(agreement: Agreement) -> bool:
    finite = math.isfinite(agreement.largest_difference)
    return finite and agreement.mask_agreement >= FORMATS[agreement.format].least_agreement


def _disagreement(agreement: Agreement) -> str:
    return (
        f"{agreement.path} agrees with the model on {agreement.mask_agreement:.3%} of the pixels, must on "
        f"{FORMATS[agreement.format].least_agreement:.1%}; probabilities differ by {agreement.largest_difference:.2g}"
    )


def _facts(
    layer: Serving, agreements: Sequence[Agreement], resize: str, compared_on: str, *, calibrated_on: int
) -> dict[str, Any]:
    """The model card's entries on inputs, outputs and files."""
    _, height, width, classes = layer.model.output_shape
    spec = layer.image_spec
    bands = "RGB" if spec.channels == 3 else f"{spec.channels} channels"
    preparation = f"{bands}, {Resizing((height, width), resize, spec.padding).describe()}"
    pixels = ["batch", height, width]
    exports: dict[str, dict[str, Any]] = {
        a.format: {**dataclasses.asdict(a), "path": Path(a.path).name, "batch": FORMATS[a.format].batch_size or "any"}
        for a in agreements
    }
    for entry in exports.values():
        others = ", or others that differ from it by multiples of 32" if entry.pop("any_size") else ""
        entry["image_size"] = f"{height} x {width}{others}"
    if "tflite_int8" in exports:
        exports["tflite_int8"]["calibrated_on"] = f"{calibrated_on} images"
        exports["tflite_int8"]["note"] = "probabilities come in steps of 1/256"
    image = {"name": "image", "shape": [*pixels, spec.channels], "content": preparation, **spec.describe()}
    probabilities = {"name": "probabilities", "dtype": "float32", "shape": [*pixels, classes], "range": [0, 1]}
    mask = {"name": "mask", "dtype": "uint8", "shape": pixels, "range": [0, classes - 1], "content": "class ids"}
    outputs = [probabilities, mask]
    return {"input": image, "outputs": outputs, "compared_on": compared_on, "formats": exports}


def _run(runner: Runner, images: np.ndarray, batch_size: int) -> dict[str, np.ndarray]:
    """Runs a loaded export on images, batch by batch."""
    with tf.device("/CPU:0"):  # TF32 on a GPU would add differences
        outputs = [runner(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    return {key: np.concatenate([output[key] for output in outputs]) for key in ("probabilities", "mask")}
