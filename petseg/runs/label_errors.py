"""Finds likely label errors, masks that a trained run contradicts: `python -m petseg.data.check --against=RUN`.

Confident learning (Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021):
a pixel is disputed if another class is most probable there, and at least as probable as that class is on average over
the pixels with its label. Masks are ranked by their mean IoU with the same mask after disputed pixels are replaced by
predictions. A run has fitted some errors of its own training data; one trained on other images finds more.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from petseg import files
from petseg.config import DataConfig
from petseg.config.eval_config import ScoreConfig
from petseg.data import loading
from petseg.data.examples import Examples
from petseg.errors import ConfigError
from petseg.evaluation import metrics
from petseg.evaluation.keras_runner import KerasRunner
from petseg.reporting import pictures
from petseg.runs import open_trained_run
from petseg.runs.open_trained_run import Run
from petseg.runtime.progress_bars import progress_bar

THRESHOLD_EXAMPLES = 512  # evenly spaced examples from which class thresholds are computed
# Fields of a config that determine the network's input.
INPUT_FIELDS = ("channels", "image_dtype", "intensity_range", "shown_channels", "image_size", "resize")
logger = logging.getLogger(__name__)


class Dispute(NamedTuple):
    """Disputed pixels of one mask."""

    mean_iou: float  # of the mask and the same mask with predictions in disputed pixels
    share: float  # fraction of the labelled pixels that are disputed
    name: str  # of the image
    example_id: int  # of the example in the split
    given: str  # most frequent class of the mask where it is disputed
    found: str  # most frequent predicted class there

    def __str__(self) -> str:
        return f"  {self.name}: {self.share:.1%} {self.found} instead of {self.given} (mean IoU {self.mean_iou:.2f})"


def report(against: str, data: DataConfig, *, most: int, sheet: Path, allow_code: bool = False) -> Iterator[str]:
    """Lines about the masks of `--train_split` that a run contradicts most; also draws them.

    Args:
      sheet: JPEG file to write: image, mask, prediction, difference and confidence of each.

    Raises:
      PetsegError: if there is no such run, its classes are others, or the file cannot be written.
    """
    score = open_trained_run.with_averages(ScoreConfig(workdir=against, allow_code=allow_code))
    run = open_trained_run.open_run(score)
    data = data.changed(**{name: getattr(run.config.data, name) for name in INPUT_FIELDS})
    examples = loading.load(data, data.train_split)
    if examples.classes.names != run.classes.names:
        raise ConfigError(
            f"--against={against}: its classes are {', '.join(run.classes.names)}; must be those of the masks, "
            f"{', '.join(examples.classes.names)}"
        )
    network = _Network(run)
    disputes = network.disputes(examples)[:most]
    yield f"split {data.train_split}: likely label errors, {len(disputes)} of {len(examples)} masks, by {against}:"
    if disputes:
        yield from map(str, disputes)
        with files.explain_write_errors(sheet, flag=f"--output_dir={sheet.parent}", error_class=ConfigError):
            files.write_bytes(sheet, network.draw(examples, disputes))
        yield f"drawn: {sheet}"


class _Network:
    """Probabilities of a run's network."""

    def __init__(self, run: Run):
        model, _ = open_trained_run.load_model(run, run.checkpoint("latest"))
        self._spec, self._classes = run.config.data.image_spec, run.classes
        self._runner = KerasRunner(model, resize=run.config.data.resize, image_spec=self._spec)

    def disputes(self, examples: Examples) -> list[Dispute]:
        """The masks with disputed pixels, those that would change most first."""
        spread = np.linspace(0, len(examples) - 1, min(len(examples), THRESHOLD_EXAMPLES)).round().astype(int)
        thresholds = self._mean_confidences(examples, np.unique(spread))
        found = []
        for index, labels, probabilities in self._predicted(examples, np.arange(len(examples))):
            usual = np.where(probabilities >= thresholds, probabilities, -1)
            classes = usual.argmax(-1)
            disputed = (labels < len(self._classes)) & (usual.max(-1) >= 0) & (classes != labels)
            disputed &= classes == probabilities.argmax(-1)
            if disputed.any():
                found.append(self._dispute(examples, index, labels, classes, disputed))
        return sorted(found, key=lambda dispute: (dispute.mean_iou, dispute.example_id))

    def _dispute(
        self, examples: Examples, index: int, labels: np.ndarray, classes: np.ndarray, disputed: np.ndarray
    ) -> Dispute:
        """Describes the disputed pixels, bool [H, W], of an example with mask and predicted class ids [H, W]."""
        count, valid = len(self._classes), labels < len(self._classes)
        changed = np.where(disputed, classes, labels)[valid]
        matrix = np.bincount(count * labels[valid].astype(np.int64) + changed, minlength=count**2)
        given, other = (self._classes.names[np.bincount(ids[disputed]).argmax()] for ids in (labels, classes))
        mean_iou = float(metrics.mean_iou(matrix.reshape(count, count)))
        name = examples.names_of([index])[0]
        return Dispute(mean_iou, float(disputed.sum() / valid.sum()), name, index, given, other)

    def draw(self, examples: Examples, disputes: list[Dispute]) -> bytes:
        """A sheet of images, masks and predictions as JPEG."""
        ids = np.array([dispute.example_id for dispute in disputes])
        images, masks = examples.read(ids)
        probabilities = np.stack([each for *_, each in self._predicted(examples, ids)])
        figure = pictures.prediction_sheet(
            self._spec.shown(images),
            masks[..., 0],
            probabilities.argmax(-1),
            probabilities.max(-1),
            [f"{dispute.name}: {dispute.share:.0%}" for dispute in disputes],
            self._classes,
        )
        return pictures.encode_jpeg(pictures.to_array(figure))

    def _mean_confidences(self, examples: Examples, ids: np.ndarray) -> np.ndarray:
        """Mean probability of each class over its labelled pixels, float64 [C]; 1 for a class without pixels."""
        sums, counts = np.zeros(len(self._classes)), np.zeros(len(self._classes))
        for _, labels, probabilities in self._predicted(examples, ids):
            for class_id in np.unique(labels[labels < len(self._classes)]):
                of_class = probabilities[labels == class_id, class_id]
                sums[class_id] += of_class.sum()
                counts[class_id] += len(of_class)
        return np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)

    def _predicted(self, examples: Examples, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Id, class ids uint8 [H, W] and probabilities float32 [H, W, C] of examples."""
        size = self._runner.batch_size
        batches = [ids[i : i + size] for i in range(0, len(ids), size)]
        for batch in progress_bar(batches, logger, what="compared", unit="batches"):
            images, masks = examples.read(batch)
            yield from zip(
                batch.tolist(), masks[..., 0], tf.nn.softmax(self._runner.logits(images)).numpy(), strict=True
            )
