"""Figures, drawn on matplotlib's Agg canvas, without the global state of pyplot."""

import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from petseg.classes import CLASS_COLORS, CLASS_NAMES, PETS

WRONG_COLOR = (204, 121, 167)  # of the same palette, reddish purple
SHADES = colormaps["viridis"]
TILE_INCHES, TITLE_INCHES, LEGEND_INCHES = 1.7, 0.25, 0.65
RUN_COLORS = {"train": "#0072B2", "eval": "#D55E00", "ema": "#009E73"}


def colorize(masks: np.ndarray, palette: np.ndarray = PETS.palette) -> np.ndarray:
    """Class ids [..., H, W] -> uint8 [..., H, W, 3], by a palette uint8 [256, 3]."""
    return palette[masks]


def prediction_sheet(
    images: np.ndarray, masks: np.ndarray, predictions: np.ndarray, confidences: np.ndarray, names: Sequence[str]
) -> Figure:
    """Image, true mask, predicted mask, errors and confidence, an example to a row.

    Args:
      images: uint8 [N, H, W, 3].
      masks: class ids [N, H, W]; an id without a class is no error.
      predictions: class ids [N, H, W].
      confidences: float [N, H, W], the probability of the predicted class.
      names: titles of the N examples.
    """
    lowest = 1 / len(CLASS_NAMES)  # of the class with the highest probability
    sure = SHADES((confidences - lowest) / (1 - lowest), bytes=True)[..., :3]
    columns = {
        "image": images,
        "truth": colorize(masks),
        "prediction": colorize(predictions),
        "errors": _errors(images, masks, predictions),
        "confidence": sure,
    }
    figure = _tiles(columns, names)
    _legend(figure, [*_class_patches(), _patch(WRONG_COLOR, "wrong")], "confidence", (lowest, 1.0))
    return figure


def comparison_sheet(
    images: np.ndarray, masks: np.ndarray, predictions: Mapping[str, np.ndarray], names: Sequence[str]
) -> Figure:
    """Image, true mask, and the masks and errors of several models, an example to a row.

    Args:
      images: uint8 [N, H, W, 3].
      masks: class ids [N, H, W]; an id without a class is no error.
      predictions: class ids [N, H, W] by the name of the model.
      names: titles of the N examples.
    """
    columns = {"image": images, "truth": colorize(masks)}
    for model, classes in predictions.items():
        columns |= {model: colorize(classes), f"{model}: errors": _errors(images, masks, classes)}
    figure = _tiles(columns, names)
    _patches_below(figure, [*_class_patches(), _patch(WRONG_COLOR, "wrong")])
    return figure


def _errors(images: np.ndarray, masks: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """The images, dark and grey, with the pixels that are wrong in a colour; uint8 [N, H, W, 3]."""
    wrong = (predictions != masks) & (masks < len(CLASS_NAMES))
    dimmed = np.repeat(images.mean(axis=-1, keepdims=True) * 0.6, 3, axis=-1)
    return np.where(wrong[..., None], WRONG_COLOR, dimmed).astype(np.uint8)


def training_batch(images: np.ndarray, masks: np.ndarray, weights: np.ndarray, names: Sequence[str]) -> Figure:
    """What the model is trained on: augmented images, their masks, what each pixel weighs.

    Args:
      images: float32 [N, H, W, 3] in [0, 255].
      masks: class ids [N, H, W].
      weights: float32 [N, H, W].
      names: titles of the N examples.
    """
    highest = max(float(weights.max()), 1e-12)
    columns = {
        "image": np.clip(images, 0, 255).astype(np.uint8),
        "mask": colorize(masks),
        "weight": SHADES(weights / highest, bytes=True)[..., :3],
    }
    figure = _tiles(columns, names)
    _legend(figure, _class_patches(), "weight", (0.0, highest))
    return figure


def confusion_matrix(matrix: np.ndarray) -> Figure:
    """Shares of each row, and counts, of a confusion matrix int64 [C, C], rows true, columns predicted."""
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axis = figure.subplots()
    drawn = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        axis.text(column, row, f"{share:.1%}\n{matrix[row, column]:,}", ha="center", va="center", fontsize=11,
                  color="white" if share > 0.5 else "black")  # fmt: skip
    axis.set(xlabel="predicted", ylabel="true", xticks=range(len(matrix)), yticks=range(len(matrix)))
    axis.set_xticklabels(CLASS_NAMES)
    axis.set_yticklabels(CLASS_NAMES, rotation=90, va="center")
    figure.colorbar(drawn, label="share of the row", format="{x:.0%}")
    return figure


def training_curves(rows: Iterable[tuple[int, str, str, float]], steps_per_epoch: int) -> Figure:
    """Loss, accuracy, mean IoU and the IoU of each class over the epochs, training beside evaluation.

    Args:
      rows: (step, run, tag, value), as `summaries.read_csv` yields them.
      steps_per_epoch: how many steps an epoch has.
    """
    series: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for step, run, tag, value in rows:
        series.setdefault((tag, run), []).append((step / steps_per_epoch, value))
    tags = ["loss", "accuracy", "mean_iou", *(f"iou/{name}" for name in CLASS_NAMES)]
    figure = Figure(figsize=(11, 6))
    figure.subplots_adjust(left=0.04, right=0.99, bottom=0.08, top=0.95, wspace=0.14, hspace=0.32)
    for axis, tag in zip(figure.subplots(2, 3).flat, tags, strict=True):
        for run, color in RUN_COLORS.items():
            points = series.get((tag, run), [])
            if points:
                axis.plot(*zip(*points, strict=True), color=color, label=run, linewidth=1.4,
                          marker=None if run == "train" else "o", markersize=3)  # fmt: skip
        axis.set_title(tag, fontsize=10)
        axis.set_xlabel("epoch", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8, frameon=False)
    return figure


def to_array(figure: Figure, dpi: int = 100) -> np.ndarray:
    """A figure as uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """A figure as PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(to_array(figure, dpi)).save(buffer, format="png", compress_level=4)
    return buffer.getvalue()


def _tiles(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Pictures side by side: a titled column for each stack uint8 [N, H, W, 3], a named row for each example.

    They are pasted into one picture, and everything has its place in inches: so many axes, or a layout that is worked
    out, would take matplotlib a second.
    """
    height, width = next(iter(columns.values())).shape[1:3]
    gap = max(1, width // 32)
    padded = [np.pad(stack, [(0, 0), (0, gap), (0, gap), (0, 0)], constant_values=255) for stack in columns.values()]
    canvas = np.concatenate(np.concatenate(padded, axis=2), axis=0)[:-gap, :-gap]
    across = TILE_INCHES * len(columns)
    down = across * canvas.shape[0] / canvas.shape[1]
    figure = Figure(figsize=(across + 0.1, down + TITLE_INCHES + LEGEND_INCHES))
    total = down + TITLE_INCHES + LEGEND_INCHES
    axis = figure.add_axes((0.05 / (across + 0.1), LEGEND_INCHES / total, across / (across + 0.1), down / total))
    axis.set_axis_off()
    axis.imshow(canvas, aspect="auto")
    for i, title in enumerate(columns):
        axis.text(i * (width + gap) + width / 2, -gap, title, ha="center", va="bottom", fontsize=10)
    for i, name in enumerate(names):
        axis.text(0, i * (height + gap), name, fontsize=7, color="white", va="top", ha="left",
                  bbox={"facecolor": "black", "alpha": 0.55, "pad": 1, "linewidth": 0})  # fmt: skip
    return figure


def _legend(figure: Figure, patches: list[Patch], shade: str, limits: tuple[float, float]) -> None:
    """Below a sheet: the colours, and what the shades of its last column mean."""
    height = figure.get_size_inches()[1]
    bar = figure.add_axes((0.25, (LEGEND_INCHES - 0.2) / height, 0.5, 0.1 / height))
    figure.colorbar(ScalarMappable(Normalize(*limits), SHADES), cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=8)
    figure.text(0.24, (LEGEND_INCHES - 0.15) / height, shade, ha="right", va="center", fontsize=9)
    _patches_below(figure, patches)


def _patches_below(figure: Figure, patches: list[Patch]) -> None:
    figure.legend(handles=patches, loc="lower center", ncols=len(patches), frameon=False, fontsize=9, borderaxespad=0.1)


def _class_patches() -> list[Patch]:
    return [_patch(color, name) for name, color in zip(CLASS_NAMES, CLASS_COLORS.tolist(), strict=True)]


def _patch(color: Sequence[int], label: str) -> Patch:
    red, green, blue = (part / 255 for part in color)
    return Patch(color=(red, green, blue), label=label)
