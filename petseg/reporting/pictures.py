"""Figures on matplotlib's Agg canvas, without the global state of pyplot."""

import io
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from petseg.classes import Classes
from petseg.files import printable
from petseg.reporting import figure_text

JPEG_QUALITY = 85
WRONG_COLOR = (204, 121, 167)  # reddish purple, from the palette of the classes
SHADES = colormaps["viridis"]
TILE_INCHES, TITLE_INCHES, SHADES_INCHES, LEGEND_ROW_INCHES = 1.7, 0.25, 0.45, 0.2
PATCHES_PER_ROW, PATCHES_SHOWN = 7, 21  # of a legend; with more classes only those that occur are shown
CHARTS = ("loss", "accuracy", "mean_iou")
CURVES_OF_CLASSES = 13  # with more classes, all share one chart
CLASSES_WITH_COUNTS, CLASSES_WITH_SHARES = 5, 20  # largest confusion matrices with text; larger ones have colours only
RUN_COLORS = {"train": "#0072B2", "eval": "#D55E00", "ema": "#009E73"}


def prediction_sheet(
    images: np.ndarray,
    masks: np.ndarray,
    predictions: np.ndarray,
    confidences: np.ndarray,
    names: Sequence[str],
    classes: Classes,
) -> Figure:
    """Image, true mask, predicted mask, errors and confidence, one row per example.

    Args:
      masks: class ids [N, H, W]; ignored pixels are no errors.
      confidences: float [N, H, W], probability of the predicted class.
    """
    lowest = 1 / len(classes)  # minimum of the highest probability
    confidence = SHADES((confidences - lowest) / (1 - lowest), bytes=True)[..., :3]
    columns = {
        "image": images,
        "truth": classes.palette[masks],
        "prediction": classes.palette[predictions],
        "errors": _errors(images, masks, predictions, classes),
        "confidence": confidence,
    }
    patches = [*_class_patches(classes, masks, predictions), _patch(WRONG_COLOR, "wrong")]
    return _sheet(columns, names, patches, ("confidence", lowest, 1.0))


def comparison_sheet(
    images: np.ndarray, masks: np.ndarray, predictions: Mapping[str, np.ndarray], names: Sequence[str], classes: Classes
) -> Figure:
    """Image, true mask, and the masks and errors of several models, one row per example.

    Args:
      predictions: class ids [N, H, W] by model name.
    """
    columns = {"image": images, "truth": classes.palette[masks]}
    for model, ids in predictions.items():
        columns |= {model: classes.palette[ids], f"{model}: errors": _errors(images, masks, ids, classes)}
    patches = [*_class_patches(classes, masks, *predictions.values()), _patch(WRONG_COLOR, "wrong")]
    return _sheet(columns, names, patches)


def _errors(images: np.ndarray, masks: np.ndarray, predictions: np.ndarray, classes: Classes) -> np.ndarray:
    """Dimmed grey images with wrong pixels in WRONG_COLOR, uint8 [N, H, W, 3]."""
    wrong = (predictions != masks) & (masks < len(classes))
    dimmed = np.repeat(images.mean(axis=-1, keepdims=True) * 0.6, 3, axis=-1)
    return np.where(wrong[..., None], WRONG_COLOR, dimmed).astype(np.uint8)


def training_batch(
    images: np.ndarray, masks: np.ndarray, weights: np.ndarray, names: Sequence[str], classes: Classes
) -> Figure:
    """Augmented training images, their masks and pixel weights."""
    highest = max(float(weights.max()), 1e-12)
    columns = {
        "image": images,
        "mask": classes.palette[masks],
        "weight": SHADES(weights / highest, bytes=True)[..., :3],
    }
    return _sheet(columns, names, _class_patches(classes, masks), ("weight", 0.0, highest))


def confusion_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Confusion matrix [C, C], rows true, columns predicted, as fractions of each row and counts."""
    few = len(matrix) <= CLASSES_WITH_COUNTS
    size = max(4.6, 0.62 * min(len(matrix), CLASSES_WITH_SHARES))
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axis = figure.subplots()
    drawn = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares if len(matrix) <= CLASSES_WITH_SHARES else np.empty((0, 0))):
        text = f"{share:.1%}\n{matrix[row, column]:,.0f}" if few else f"{share:.0%}"
        axis.text(column, row, text, ha="center", va="center", fontsize=11 if few else 9,
                  color="white" if share > 0.5 else "black")  # fmt: skip
    axis.set(xlabel="predicted", ylabel="true", xticks=range(len(matrix)), yticks=range(len(matrix)))
    class_names = [printable(name, keep="\n") for name in class_names]  # drawing resets these texts
    axis.set_xticklabels(class_names, rotation=0 if few else 90)
    axis.set_yticklabels(class_names, rotation=90 if few else 0, va="center")
    figure.colorbar(drawn, label="fraction of the row", format="{x:.0%}")
    return figure


def is_in_curves(run: str, tag: str, classes: Classes) -> bool:
    """Whether `training_curves` draws a scalar; with many classes, their IoU only in evaluations."""
    if run not in RUN_COLORS:
        return False
    kind, _, name = tag.partition("/")
    if kind == "iou":
        return name in classes.names and (len(classes) <= CURVES_OF_CLASSES or run != "train")
    return tag in CHARTS


def training_curves(rows: Iterable[tuple[int, str, str, float]], steps_per_epoch: int, classes: Classes) -> Figure:
    """Loss, accuracy, mean IoU and IoU of each class over epochs, training and evaluation in the same charts.

    Args:
      rows: (step, run, tag, value), as `summaries.read_csv` yields them.
    """
    series: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for step, run, tag, value in rows:
        series.setdefault((tag, run), []).append((step / steps_per_epoch, value))
    tags = [f"iou/{name}" for name in classes.names]
    charts = [*CHARTS, *(tags if len(tags) <= CURVES_OF_CLASSES else [])]
    across = 3 if len(charts) <= 6 else 4
    down = math.ceil((len(charts) + (len(tags) > CURVES_OF_CLASSES)) / across)
    figure = Figure(figsize=(11, 3 * down))
    figure.subplots_adjust(
        left=0.04, right=0.99, bottom=0.16 / down, top=1 - 0.1 / down, wspace=0.14 if across == 3 else 0.2, hspace=0.32
    )
    axes = list(figure.subplots(down, across).flat)
    for axis, tag in zip(axes, charts, strict=False):
        for run, color in RUN_COLORS.items():
            points = series.get((tag, run), [])
            if points:
                axis.plot(*zip(*points, strict=True), color=color, label=run, linewidth=1.4,
                          marker=None if run == "train" else "o", markersize=3)  # fmt: skip
        _finish_chart(axis, tag)
        if axis.lines:
            axis.legend(fontsize=8, frameon=False)
    rest = axes[len(charts) :]
    if len(tags) > CURVES_OF_CLASSES:
        for tag, each in zip(tags, classes.members, strict=True):
            points = series.get((tag, "ema"), series.get((tag, "eval"), []))
            if points:
                rest[0].plot(*zip(*points, strict=True), color=[part / 255 for part in each.color], linewidth=1)
        _finish_chart(rest.pop(0), "iou of each class, evaluation")
    for axis in rest:
        axis.set_axis_off()
    return figure


def _finish_chart(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("epoch", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)


def to_array(figure: Figure) -> np.ndarray:
    """Renders a figure as uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(100)
    figure_text.prepare(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ ")  # `prepare` has warned already
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def to_png(figure: Figure) -> bytes:
    return encode_png(to_array(figure))


def encode_png(picture: np.ndarray) -> bytes:
    """Encodes an image uint8 [H, W, 3] as PNG."""
    return _encoded(picture, format="png", compress_level=4)


def encode_jpeg(picture: np.ndarray) -> bytes:
    """Encodes an image uint8 [H, W, 3] as JPEG without chroma subsampling, so that edges of masks stay sharp."""
    return _encoded(picture, format="jpeg", quality=JPEG_QUALITY, subsampling=0, optimize=True)


def _encoded(picture: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, **options)
    return buffer.getvalue()


def _sheet(
    columns: Mapping[str, np.ndarray],
    names: Sequence[str],
    patches: Sequence[Patch],
    shades: tuple[str, float, float] | None = None,
) -> Figure:
    """Grid of images: a titled column per stack uint8 [N, H, W, 3], a named row per example; a legend below.

    Images are pasted into one, and positions are given in inches: many axes or a computed layout would take a second.
    `shades` has title and limits of a colour bar for the last column.
    """
    height, width = next(iter(columns.values())).shape[1:3]
    gap = max(1, width // 32)
    padded = [np.pad(stack, [(0, 0), (0, gap), (0, gap), (0, 0)], constant_values=255) for stack in columns.values()]
    canvas = np.concatenate(np.concatenate(padded, axis=2), axis=0)[:-gap, :-gap]
    across = TILE_INCHES * len(columns)
    down = across * canvas.shape[0] / canvas.shape[1]
    legend = LEGEND_ROW_INCHES * math.ceil(len(patches) / PATCHES_PER_ROW)
    below = legend + (SHADES_INCHES if shades else 0)
    total = down + TITLE_INCHES + below
    figure = Figure(figsize=(across + 0.1, total))
    axis = figure.add_axes((0.05 / (across + 0.1), below / total, across / (across + 0.1), down / total))
    axis.set_axis_off()
    axis.imshow(canvas, aspect="auto")
    for i, title in enumerate(columns):
        axis.text(i * (width + gap) + width / 2, -gap, title, ha="center", va="bottom", fontsize=10)
    for i, name in enumerate(names):
        axis.text(0, i * (height + gap), name, fontsize=7, color="white", va="top", ha="left",
                  bbox={"facecolor": "black", "alpha": 0.55, "pad": 1, "linewidth": 0})  # fmt: skip
    if shades:
        title, low, high = shades
        bar = figure.add_axes((0.25, (below - 0.2) / total, 0.5, 0.1 / total))
        figure.colorbar(ScalarMappable(Normalize(low, high), SHADES), cax=bar, orientation="horizontal")
        bar.tick_params(labelsize=8)
        figure.text(0.24, (below - 0.15) / total, title, ha="right", va="center", fontsize=9)
    figure.legend(handles=list(patches), loc="lower center", ncols=min(len(patches), PATCHES_PER_ROW), frameon=False,
                  fontsize=9, borderaxespad=0.1, labelspacing=0.2)  # fmt: skip
    return figure


def _class_patches(classes: Classes, *masks: np.ndarray) -> list[Patch]:
    """Legend of the classes; with many, only of those that occur in the masks."""
    occur = set(np.unique(np.concatenate([np.unique(each) for each in masks])).tolist())
    shown = [i for i in range(len(classes)) if len(classes) < PATCHES_SHOWN or i in occur]
    return [_patch(classes.members[i].color, classes.names[i]) for i in shown]


def _patch(color: Sequence[int], label: str) -> Patch:
    red, green, blue = (part / 255 for part in color)
    return Patch(color=(red, green, blue), label=label)
