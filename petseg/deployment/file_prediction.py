"""Predicts masks for files of photographs: reader and writer threads around the network. Imports no TensorFlow."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from petseg import files as files_lib
from petseg.data import images, picture_files
from petseg.data.picture_files import FileContent
from petseg.deployment.photograph_files import Photograph, Plan
from petseg.deployment.predictor import Predictor, Prepared
from petseg.deployment.segmentation import Segmentation
from petseg.errors import UnreadableFilesError
from petseg.runtime.progress_bars import progress_bar

logger = logging.getLogger(__name__)
THREADS = 4
MOST_BATCHES, MOST_BYTES = 3, 128_000_000  # in memory at a time, from reading to writing
UNREADABLE = "cannot be read"


def run_plan(plan: Plan, predictor: Predictor) -> list[Path]:
    """Predicts the photographs of a plan, few of which are in memory at a time; returns the files of the masks.

    Raises:
      WorkDirectoryError: if the output cannot be written.
      UnreadableFilesError: at the end, if some photographs could not be read, segmented or written.
    """
    start = time.monotonic()
    with files_lib.explain_write_errors(plan.output_dir, flag=f"--output_dir={plan.output_dir}"):
        Path(plan.output_dir).mkdir(parents=True, exist_ok=True)
        with _Pipeline(plan, predictor) as pipeline:
            masks = pipeline.run()
    log_summary(plan, len(masks), time.monotonic() - start)
    if named := pipeline.with_opacity:
        logger.info("%d photographs: the first, %s, %s", len(named), min(named), images.UNUSED_OPACITY)
    if failed := pipeline.failed:
        reason = failed[0] if len(set(failed)) == 1 else "failed; the log gives the reason for each"
        count = len(plan.photographs) + plan.skipped
        raise UnreadableFilesError(f"{len(failed)} of {count} files {reason}; the rest is done")
    return masks


def log_summary(plan: Plan, count: int = 0, seconds: float = 0.0) -> None:
    """Logs the number of masks that were written, the speed, and the number of photographs that were skipped."""
    speed = f" in {seconds:.1f} s, {count / seconds:.1f} images/s" if count and seconds else ""
    skipped = f"; skipped {plan.skipped} that existed" if plan.skipped else ""
    photographs = f"{count} photograph{'s' * (count != 1)}"
    logger.info("wrote the masks of %s to %s%s%s", photographs, plan.output_dir, speed, skipped)


class _Item(NamedTuple):
    """A photograph in the pipeline: its number in the plan, and the bytes of its pixels."""

    number: int
    photograph: Photograph
    bytes: int


class _Pipeline:
    """Reads, segments and writes the photographs of a plan.

    Threads read ahead of the network and write behind it; the calling thread runs the network. The photographs in
    memory are limited in number and in total bytes; one above the limit of bytes is processed alone.
    """

    def __init__(self, plan: Plan, predictor: Predictor):
        self._plan, self._predictor = plan, predictor
        self._pool = ThreadPoolExecutor(THREADS, "photographs")
        self._waiting = deque(enumerate(plan.photographs))
        self._reading: deque[tuple[_Item, Future[Prepared]]] = deque()
        self._writing: dict[Future[Path], _Item] = {}
        self._bytes = 0  # of the pixels of all photographs in memory
        self._stack: tuple[Path, FileContent] | None = None  # the file whose pages are being read
        self._masks: dict[int, Path] = {}
        self.with_opacity: list[Path] = []  # photographs whose opacity varies and is not used
        self.failed: list[str] = []  # for each failed photograph, the step that failed
        self._bar = progress_bar(None, logger, unit="images", total=len(plan.photographs))

    def __enter__(self) -> "_Pipeline":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)  # files that are being written are completed
        self._bar.close()

    def run(self) -> list[Path]:
        """Processes all photographs; returns the masks in the order of the plan."""
        while self._waiting or self._reading or self._writing:
            self._read_ahead()
            for item, finish in self._segment(self._next_batch()):
                self._writing[self._pool.submit(self._write, item.photograph, finish)] = item
            self._collect_written(wait=not self._reading)
        return [self._masks[number] for number in sorted(self._masks)]

    def _read_ahead(self) -> None:
        while self._waiting:
            number, photograph = self._waiting[0]
            file = self._file(photograph)
            try:
                pixels = file.pixels if isinstance(file, FileContent) else picture_files.count_pixels(file)
            except Exception as error:
                self._waiting.popleft()
                self._record_failure(photograph, UNREADABLE, error)
                continue
            count = len(self._reading) + len(self._writing)
            size = pixels * self._predictor.image_spec.bytes_per_pixel
            if count and (count >= MOST_BATCHES * self._predictor.batch_size or self._bytes + size > MOST_BYTES):
                return
            self._waiting.popleft()
            self._bytes += size
            self._reading.append((_Item(number, photograph, size), self._pool.submit(self._read, photograph, file)))

    def _file(self, photograph: Photograph) -> Path | FileContent:
        """The file of a photograph; of a stack its content, which the pages share."""
        if photograph.page is None:
            return photograph.file
        if self._stack is None or self._stack[0] != photograph.file:
            self._stack = photograph.file, FileContent(photograph.file)
        return self._stack[1]

    def _next_batch(self) -> list[tuple[_Item, Prepared]]:
        batch: list[tuple[_Item, Prepared]] = []
        while self._reading and len(batch) < self._predictor.batch_size:
            item, future = self._reading.popleft()
            try:
                batch.append((item, future.result()))
            except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
                self._drop(item, UNREADABLE, error)
        return batch

    def _segment(self, batch: Sequence[tuple[_Item, Prepared]]) -> list[tuple[_Item, Callable[[], Segmentation]]]:
        if not batch:
            return []
        try:
            finishers = self._predictor.run_network([prepared for _, prepared in batch])
            return [(item, finish) for (item, _), finish in zip(batch, finishers, strict=True)]
        except Exception as error:  # such as too little memory for a large image
            if files_lib.is_disk_error(error):  # of the probabilities of a tiled image
                raise
            if len(batch) == 1:
                self._drop(batch[0][0], "cannot be segmented", error)
                return []
            return [result for one in batch for result in self._segment([one])]  # so that only the faulty ones fail

    def _collect_written(self, *, wait: bool) -> None:
        """Records the results of finished writers, after waiting for at least one if asked to.

        Raises OSError if the disk is full or not writable.
        """
        if wait and self._writing:
            futures.wait(self._writing, return_when=futures.FIRST_COMPLETED)
        for future in [future for future in self._writing if future.done()]:
            item = self._writing.pop(future)
            try:
                self._masks[item.number] = future.result()
            except Exception as error:
                if files_lib.is_disk_error(error):
                    raise
                self._drop(item, "cannot be written", error)
            else:
                self._bytes -= item.bytes
                self._bar.update()

    def _drop(self, item: _Item, step: str, error: Exception) -> None:
        self._bytes -= item.bytes
        self._record_failure(item.photograph, step, error)

    def _record_failure(self, photograph: Photograph, step: str, error: Exception) -> None:
        reason = " ".join(str(error).split()).removeprefix(f"{step}: ") or type(error).__name__
        logger.warning("%s: %s: %s", files_lib.printable(str(photograph.file)), step, reason)
        self.failed.append(step)
        self._bar.update()

    def _read(self, photograph: Photograph, file: Path | FileContent) -> Prepared:
        image = images.read(
            file,
            self._predictor.image_spec,
            photograph.page,
            on_unused_opacity=lambda: self.with_opacity.append(photograph.file),
        )
        return self._predictor.prepare(image)

    def _write(self, photograph: Photograph, finish: Callable[[], Segmentation]) -> Path:
        return self._plan.write(photograph, finish())
