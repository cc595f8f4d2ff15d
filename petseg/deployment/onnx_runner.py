"""Runs an exported ONNX model on images of any size with ONNX Runtime and NumPy, without loading TensorFlow."""

import importlib.util
import os
from collections.abc import Iterator

import numpy as np

from petseg.config.image_spec import GREY
from petseg.data.numpy_resizing import NumpyResizing
from petseg.errors import ConfigError, ExportError, one_line
from petseg.evaluation.tiled_inference import MIN_PROBABILITY, inference_batch_size

SIZE = "petseg.size"  # key of the file's metadata: height and width for which the network was trained


class OnnxRunner:
    """An ONNX file that petseg exported, as `tiled_inference.Runner`.

    Args:
      path: the file: `image`, uint8 or uint16 [B, h, w, C] -> `probabilities`, float32 [B, h, w, C].

    Attributes:
      size: height and width of the model's input; of a model that takes any size, those it was trained for.

    Raises:
      ConfigError: if ONNX Runtime is not installed.
      ExportError: if the file cannot be read, or petseg did not export it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        resize: str = "stretch",
        flip_tta: bool = False,
        padding: tuple[int, ...] = (GREY,),
    ):
        check_installed()
        import onnxruntime

        if not os.path.isfile(path):
            raise ExportError(f"{path}: there is no such file; must be an ONNX file")
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
            (image,) = (each for each in self._session.get_inputs() if each.name == "image")
            if "probabilities" not in [each.name for each in self._session.get_outputs()]:
                raise ValueError("it has no output probabilities")
            _, height, width, _ = image.shape
            if not isinstance(height, int):  # takes any size
                height, width = self._session.get_modelmeta().custom_metadata_map[SIZE].split(",")
            self.size = (int(height), int(width))
        except Exception as error:  # ONNX Runtime raises classes of its own, and bare ones
            raise ExportError(f"{path}: is not an ONNX file that petseg exported: {one_line(error)}") from error
        self.batch_size = inference_batch_size(self.size)
        self._resizing, self._flip_tta = NumpyResizing(self.size, resize, padding), flip_tta

    def resize_image(self, image: np.ndarray) -> np.ndarray:
        return self._resizing.image(image)

    def logits(self, images: np.ndarray) -> np.ndarray:
        probabilities = self._probabilities(images)
        if self._flip_tta:
            probabilities = (probabilities + self._probabilities(images[:, :, ::-1])[:, :, ::-1]) / 2
        return np.log(np.maximum(probabilities, MIN_PROBABILITY))  # the logits up to a constant per pixel

    def resize_logits(self, logits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return np.moveaxis(np.concatenate(list(self._resizing.to_image_size(logits, shape)), axis=1), 0, -1)

    def probabilities(self, logits: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        return self._resizing.probabilities(logits, shape)

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        return self._session.run(["probabilities"], {"image": np.ascontiguousarray(images)})[0]


def is_installed() -> bool:
    """Whether ONNX Runtime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def check_installed() -> None:
    """Raises ConfigError if ONNX Runtime is not installed."""
    if not is_installed():
        raise ConfigError("--runtime=onnx: needs the package onnxruntime: pip install onnxruntime")
