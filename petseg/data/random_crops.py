"""Random crops at native resolution (--resize=crop)."""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from petseg.data.crop_focus import CropFocus, FocusPixels
from petseg.data.example_decoding import BadExampleError
from petseg.data.examples import BatchPosition, Examples, Fetched
from petseg.data.picture_formats import open_picture

# Added to seeds, which are smaller: augmentation also draws from (seed, step) and must be independent of the crops.
STREAM = 1 << 32


class RandomCrops(Examples):
    """Random crops of images in training, drawn anew in each step; centre crops elsewhere.

    Args:
      canvases: the images, each centred on a canvas by `Resizing` with method `crop`; all canvases have one size.
      sizes: int32 [N, 2], height and width of each image.
    """

    def __init__(self, canvases: Examples, size: tuple[int, int], sizes: np.ndarray, focus: CropFocus | None = None):
        self._canvases, self._size, self._sizes, self._focus = canvases, size, sizes, focus
        self.classes, self.names, self.origin = canvases.classes, canvases.names, canvases.origin
        self.checked, self.fetch_portable = canvases.checked, canvases.fetch_portable

    def __len__(self) -> int:
        return len(self._canvases)

    @property
    def groups(self) -> Mapping[str, Sequence[str]]:  # type: ignore[override]
        return self._canvases.groups

    def focused(self, focus: CropFocus) -> "RandomCrops":
        """The same crops, a fraction of them centred on rare classes."""
        return RandomCrops(self._canvases, self._size, self._sizes, focus)

    def subset(self, ids: np.ndarray) -> "RandomCrops":
        return RandomCrops(self._canvases.subset(ids), self._size, self._sizes[ids], self._focus)

    def fetch(self, ids: tf.Tensor) -> Fetched:
        """The centre crops."""
        return self._canvases.fetch(ids).moved(self._centre)

    def batch(self, ids: tf.Tensor, at: BatchPosition, *, portable: bool = False) -> Fetched:
        """The random crops of a step, which lie inside their images; a smaller image is centred in its crop."""
        canvases = self._canvases.batch(ids, at, portable=portable)
        drawn = tf.random.stateless_uniform(
            [at.batch_size, 2], seed=tf.stack([tf.constant(at.seed + STREAM, tf.int64), at.step])
        )
        pixels = None if self._focus is None else self._focus.pixels(canvases.mask, at)
        canvas, drawn = tf.shape(canvases.image)[1:3], tf.gather(drawn, at.positions)
        starts = self._starts(tf.gather(self._sizes, ids), canvas, drawn, pixels)
        return canvases.moved(lambda array: self._cropped(array, starts))

    def read(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image, mask = self._canvases.read(ids)
        return self._centre(image), self._centre(mask)

    def masks_to_count(self) -> Iterator[np.ndarray]:
        return self._canvases.masks_to_count()

    def has_labels(self) -> bool:
        return self._canvases.has_labels()

    def check(self) -> None:
        self._canvases.check()

    def check_example(self, i: int) -> None:
        self._canvases.check_example(i)

    def _centre(self, canvases: tf.Tensor | np.ndarray) -> tf.Tensor | np.ndarray:
        top, left = ((side - wanted) // 2 for side, wanted in zip(canvases.shape[1:3], self._size, strict=True))
        return canvases[:, top : top + self._size[0], left : left + self._size[1]]

    def _starts(self, sizes: tf.Tensor, canvas: tf.Tensor, drawn: tf.Tensor, centres: FocusPixels | None) -> tf.Tensor:
        """Top left corners of crops in their canvases, int32 [K, 2], from uniform numbers in [0, 1), [K, 2]."""
        margins, room = (canvas - sizes) // 2, sizes - tf.constant(self._size)
        inside = tf.minimum(tf.cast(drawn * tf.cast(room + 1, tf.float32), tf.int32), room)  # rounding may reach 1
        if centres is not None:
            centred = tf.stack([centres.row, centres.column], axis=1) - margins - tf.constant(self._size) // 2
            inside = tf.where(centres.found[:, None], tf.clip_by_value(centred, 0, tf.maximum(room, 0)), inside)
        return margins + tf.where(room >= 0, inside, -(-room // 2))

    def _cropped(self, canvases: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
        shape = [*self._size, canvases.shape[-1]]

        def crop(canvas_and_start: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            canvas, start = canvas_and_start
            return tf.slice(canvas, [start[0], start[1], 0], shape)

        # A slice per canvas: tf.gather of rows and columns would copy single pixels and take ten times as long.
        return tf.map_fn(crop, (canvases, starts), fn_output_signature=tf.TensorSpec(shape, canvases.dtype))


def sizes_in_headers(files: Iterable[bytes], count: int, planes: int = 1) -> np.ndarray:
    """Heights and widths from the headers of image files, int32 [count, 2]; 1 x 1 if a header cannot be read.

    Files hold `planes` planes of an image one below the other.
    """
    sizes = np.ones((count, 2), np.int32)
    for i, file in enumerate(files):
        with contextlib.suppress(Exception), open_picture(io.BytesIO(file)) as picture:  # decoding will report why
            sizes[i] = picture.height // planes, picture.width
    return sizes


def check_size(in_header: np.ndarray, size: np.ndarray, where: str) -> None:
    """Raises BadExampleError if a decoded image does not have the size in its header."""
    if (size != in_header).any():
        raise BadExampleError(
            f"{where}: the image header says {tuple(in_header.tolist())} (height, width); must be "
            f"{tuple(size.tolist())}, the size of the decoded image"
        )
