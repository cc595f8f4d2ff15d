"""Masks for photographs: any size, any kind that Pillow reads, several at a time. Imports no TensorFlow itself."""

import dataclasses
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from petseg import files as files_lib
from petseg.classes import Classes
from petseg.deployment.photograph_files import Photograph, Plan, check_foreground
from petseg.deployment.photographs import count_pixels, read_image
from petseg.errors import UnreadableFilesError
from petseg.evaluation.tiled_inference import AnySizeModel, Runner
from petseg.runtime.progress_bars import progress_bar

if TYPE_CHECKING:
    import keras

logger = logging.getLogger(__name__)
# At work at the same time, from reading to writing: of more, batches and threads would have no use.
THREADS = 4
MOST_BATCHES, MOST_PIXELS = 3, 32_000_000
UNREADABLE = "cannot be read"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a photograph shows.

    Attributes:
      classes: class ids, uint8 [H, W].
      foreground: how much of each pixel is foreground, uint8 [H, W], 255 for all of it: what its probabilities say of
        the classes' shares. None where no class is foreground.
    """

    classes: np.ndarray
    foreground: np.ndarray | None


class Predictor:
    """Says of each pixel of a photograph what it is.

    Args:
      model: float32 images in [0, 255] of one size -> float32 logits; or an ONNX file that petseg exported, for which
        TensorFlow is not needed.
      classes: the classes that it tells apart.
      resize: how photographs come to the model's size, one of RESIZES.
      tile: height and width of tiles in which they are gone over; None: as a whole. With tiles, of the probabilities of
        one photograph only as many are in memory as one row of tiles has.
      flip_tta: whether to average the probabilities of the photograph and of its mirror image.

    Attributes:
      classes: the classes that it tells apart.
      batch_size: number of photographs that are taken at a time.

    Raises:
      ConfigError: if ONNX Runtime is needed and not installed.
      ExportError: if the ONNX file cannot be read.
    """

    def __init__(
        self,
        model: "keras.Model | str | os.PathLike[str]",
        classes: Classes,
        *,
        resize: str = "stretch",
        tile: tuple[int, int] | None = None,
        flip_tta: bool = False,
    ):
        self.classes = classes
        self._model = AnySizeModel(_runner(model, resize=resize, flip_tta=flip_tta), tile=tile)
        self.batch_size = self._model.runner.batch_size

    def __call__(self, image: np.ndarray) -> Prediction:
        """What a photograph uint8 [H, W, 3] of any size shows."""
        return self._prediction(self._model.stripes(image))

    def predict(self, images: Iterable[np.ndarray]) -> Iterator[Prediction]:
        """What photographs show, each of another size if need be, in batches."""
        images = iter(images)
        while batch := list(itertools.islice(images, self.batch_size)):
            yield from (self.finish(said) for said in self.say([self.prepare(image) for image in batch]))

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Probabilities of the classes, float32 [H, W, C], all at once, of a photograph uint8 [H, W, 3]."""
        return self._model.probabilities(image)

    # The three steps of `predict`. The network is for one thread, what comes before and after it for any.

    def prepare(self, image: np.ndarray) -> "Prepared":
        """Brings a photograph to the network's size, if it is taken as a whole."""
        return Prepared(image, self._model.runner.resize_image(image) if self._model.is_whole(image.shape) else None)

    def say(self, batch: Sequence["Prepared"]) -> list["Said"]:
        """Has the network say what photographs show, those that are taken as a whole all at once."""
        small = [each.small for each in batch if each.small is not None]
        logits = iter(self._model.network_logits(small) if small else ())
        return [
            Said(each.image, self(each.image)) if each.small is None else Said(each.image, next(logits))
            for each in batch
        ]

    def finish(self, said: "Said") -> Prediction:
        """Brings what the network said of a photograph to the photograph's size."""
        if isinstance(said.what, Prediction):
            return said.what
        return self._prediction(self._model.runner.probabilities(said.what, said.image.shape))

    def _prediction(self, stripes: Iterable[np.ndarray]) -> Prediction:
        shares = self.classes.foreground
        found, foreground = [], []
        for stripe in stripes:
            found.append(stripe.argmax(axis=-1).astype(np.uint8))
            if shares.any():
                foreground.append((stripe @ shares * 255).round().astype(np.uint8))
        return Prediction(np.concatenate(found), np.concatenate(foreground) if foreground else None)


class Prepared(NamedTuple):
    """A photograph, uint8 [H, W, 3], and at the network's size, uint8 [h, w, 3]; None where it comes in tiles."""

    image: np.ndarray
    small: np.ndarray | None


class Said(NamedTuple):
    """A photograph, uint8 [H, W, 3], and what the network says of it: logits of its size, or all there is to say."""

    image: np.ndarray
    what: Any


def _runner(model: Any, *, resize: str, flip_tta: bool) -> Runner:
    if isinstance(model, str | os.PathLike):
        from petseg.deployment.onnx_runner import OnnxRunner

        return OnnxRunner(model, resize=resize, flip_tta=flip_tta)
    from petseg.evaluation.keras_runner import KerasRunner

    return KerasRunner(model, resize=resize, flip_tta=flip_tta)


def predict_files(
    predictor: Predictor, pattern: str, output_dir: str, *, cutout: bool = False, skip_existing: bool = False
) -> list[Path]:
    """Writes masks and overlays for photographs, few of which are in memory at a time.

    For `cat.jpg`: `cat.mask.png`, an indexed-colour PNG of class ids as large as the photograph; `cat.overlay.jpg`; if
    asked for, `cat.cutout.png`, the foreground with the rest transparent.

    Args:
      predictor: what makes the masks.
      pattern, output_dir, cutout, skip_existing: as in `Plan.make`.

    Returns:
      the masks that were written.

    Raises:
      ConfigError: if cut-outs are asked for, and no class is foreground.
      DataError, WorkDirectoryError: as `Plan.make`; also if the output cannot be written.
      UnreadableFilesError: at the end, if some photographs could not be read, segmented or written.
    """
    if cutout:
        check_foreground(predictor.classes)
    return carry_out(Plan.make(pattern, output_dir, cutout=cutout, skip_existing=skip_existing), predictor)


def carry_out(plan: Plan, predictor: Predictor) -> list[Path]:
    """Does what is planned; see `predict_files`."""
    began = time.monotonic()
    with files_lib.explain_write_errors(plan.output_dir, flag=f"--output_dir={plan.output_dir}"):
        Path(plan.output_dir).mkdir(parents=True, exist_ok=True)
        with _Work(plan, predictor) as work:
            masks = work.do()
    report(plan, masks, time.monotonic() - began)
    if work.failed:
        count, number = len(plan.photographs) + plan.skipped, len(work.failed)
        what = work.failed[0] if len(set(work.failed)) == 1 else "failed, each for the reason that is logged"
        raise UnreadableFilesError(f"{number} of {count} files {what}; the rest is done")
    return masks


def report(plan: Plan, masks: Sequence[Path] = (), seconds: float = 0.0) -> list[Path]:
    """Says in the log what was done; returns the masks."""
    speed = f" in {seconds:.1f} s, {len(masks) / seconds:.1f} images/s" if masks and seconds else ""
    skipped = f"; those of {plan.skipped} were there already" if plan.skipped else ""
    logger.info("wrote the masks of %d photographs to %s%s%s", len(masks), plan.output_dir, speed, skipped)
    return list(masks)


class _Work:
    """Photographs on their way through reading, network and writing.

    Threads read and write, ahead of the network and behind it; the calling thread runs the network. What is on its way
    is limited in number and in pixels; a photograph of more pixels goes alone.
    """

    def __init__(self, plan: Plan, predictor: Predictor):
        self._plan, self._predictor = plan, predictor
        self._pool = ThreadPoolExecutor(THREADS, "photographs")
        self._to_read = deque(enumerate(plan.photographs))
        self._reading: deque[tuple[_Place, Future[Prepared]]] = deque()
        self._writing: dict[Future[Path], _Place] = {}
        self._pixels = 0  # of all that is on its way
        self._masks: dict[int, Path] = {}
        self.failed: list[str] = []  # of each photograph that failed, what could not be done
        self._bar = progress_bar(None, logger, unit="images", total=len(plan.photographs))

    def __enter__(self) -> "_Work":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)  # what is being written, is written to its end
        self._bar.close()

    def do(self) -> list[Path]:
        """Everything; returns the masks."""
        while self._to_read or self._reading or self._writing:
            self._read_ahead()
            self._run_network()
            self._take_note(wait=not self._reading)
        return [self._masks[number] for number in sorted(self._masks)]

    def _read_ahead(self) -> None:
        while self._to_read:
            number, photograph = self._to_read[0]
            try:
                pixels = count_pixels(photograph.file)
            except Exception as error:
                self._to_read.popleft()
                self._skip(photograph, UNREADABLE, error)
                continue
            count = len(self._reading) + len(self._writing)
            if count and (count >= MOST_BATCHES * self._predictor.batch_size or self._pixels + pixels > MOST_PIXELS):
                return
            self._to_read.popleft()
            self._pixels += pixels
            place = _Place(number, photograph, pixels)
            self._reading.append((place, self._pool.submit(self._read, photograph)))

    def _run_network(self) -> None:
        for place, said in self._segmented(*self._next_batch()):
            self._writing[self._pool.submit(self._write, place.photograph, said)] = place

    def _next_batch(self) -> tuple[list["_Place"], list[Prepared]]:
        places: list[_Place] = []
        batch: list[Prepared] = []
        while self._reading and len(batch) < self._predictor.batch_size:
            place, future = self._reading.popleft()
            try:
                batch.append(future.result())
                places.append(place)
            except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
                self._pixels -= place.pixels
                self._skip(place.photograph, UNREADABLE, error)
        return places, batch

    def _segmented(self, places: Sequence["_Place"], batch: Sequence[Prepared]) -> list[tuple["_Place", Said]]:
        if not batch:
            return []
        try:
            return list(zip(places, self._predictor.say(batch), strict=True))
        except Exception as error:  # such as too little memory for a large one
            if len(batch) == 1:
                self._pixels -= places[0].pixels
                self._skip(places[0].photograph, "cannot be segmented", error)
                return []
            # One by one, so that only those fail that are at fault.
            return [pair for place, one in zip(places, batch, strict=True) for pair in self._segmented([place], [one])]

    def _take_note(self, *, wait: bool) -> None:
        """Takes note of what has been written, after the next of it if that is to be waited for.

        Raises:
          OSError: if the disk is full or not writable.
        """
        if wait and self._writing:
            futures.wait(self._writing, return_when=futures.FIRST_COMPLETED)
        for future in [future for future in self._writing if future.done()]:
            place = self._writing.pop(future)
            self._pixels -= place.pixels
            try:
                self._masks[place.number] = future.result()
            except Exception as error:
                if files_lib.is_disk_error(error):
                    raise
                self._skip(place.photograph, "cannot be written", error)
            else:
                self._bar.update()

    def _skip(self, photograph: Photograph, what: str, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        logger.warning("%s: %s: %s", photograph.file, what, reason)
        self.failed.append(what)
        self._bar.update()

    def _read(self, photograph: Photograph) -> Prepared:
        return self._predictor.prepare(read_image(photograph.file))

    def _write(self, photograph: Photograph, said: Said) -> Path:
        prediction = self._predictor.finish(said)
        return self._plan.write(
            photograph, said.image, prediction.classes, prediction.foreground, self._predictor.classes
        )


class _Place(NamedTuple):
    """A photograph on its way, its number, and the pixels that it was counted with."""

    number: int
    photograph: Photograph
    pixels: int
