"""Figures. The only module that imports matplotlib; draws on its Agg canvas, without pyplot's global state."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import keras
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle

from petseg.config import CLASS_NAMES

# Okabe and Ito's colours, which colour-blind readers can tell apart: vermilion, blue, yellow.
CLASS_COLORS = np.array([[213, 94, 0], [0, 114, 178], [240, 228, 66]], np.uint8)
RUN_COLORS = {"train": "#0072B2", "eval": "#D55E00"}


def colorize(masks: np.ndarray) -> np.ndarray:
    """Class ids [..., H, W] -> uint8 [..., H, W, 3]; ids without a class are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(CLASS_COLORS)] = CLASS_COLORS
    return table[masks]


def prediction_sheet(images: np.ndarray, masks: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> Figure:
    """Image, true mask and predicted mask, two examples to a row, with a legend of the classes.

    Args:
      images: uint8 [N, H, W, 3].
      masks: class ids [N, H, W].
      predictions: class ids [N, H, W].
      names: N titles.
    """
    across = min(2, len(images))
    down = -(-len(images) // across)
    figure = Figure(figsize=(4.5 * across, 1.62 * down + 0.45), layout="constrained")
    axes = figure.subplots(down, 3 * across, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, name in enumerate(names):
        row, column = divmod(i, across)
        trio = axes[row, 3 * column : 3 * column + 3]
        pictures = (images[i], colorize(masks[i]), colorize(predictions[i]))
        for axis, picture, title in zip(trio, pictures, ("image", "true", "predicted"), strict=True):
            axis.imshow(picture)
            axis.set_title(title if row == 0 else "", fontsize=9)
        trio[0].text(0, 1.0, name, transform=trio[0].transAxes, fontsize=6, color="white", va="top", ha="left",
                     bbox={"facecolor": "black", "alpha": 0.55, "pad": 1, "linewidth": 0})  # fmt: skip
    figure.legend(handles=_class_patches(), loc="outside lower center", ncols=len(CLASS_NAMES), frameon=False)
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
    figure = Figure(figsize=(11, 6), layout="constrained")
    for axis, tag in zip(figure.subplots(2, 3).flat, tags, strict=True):
        for run, color in RUN_COLORS.items():
            points = series.get((tag, run), [])
            if points:
                axis.plot(*zip(*points, strict=True), color=color, label=run, linewidth=1.4,
                          marker="o" if run == "eval" else None, markersize=3)  # fmt: skip
        axis.set_title(tag, fontsize=10)
        axis.set_xlabel("epoch", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8, frameon=False)
    return figure


def model_diagram(model: keras.Model) -> Figure:
    """The U of a U-Net: a box for each stage with its size, arrows for the skip connections."""
    down = [tuple(output.shape[1:]) for output in model.get_layer("encoder").output]
    up = [tuple(layer.output.shape[1:]) for layer in model.layers if layer.name.startswith("skip_")]
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axis = figure.subplots()
    axis.set_axis_off()
    axis.set(xlim=(-0.2, 10.2), ylim=(-6.1, 0.6))

    def box(x: float, level: int, title: str, shape: Sequence[int], color: str) -> None:
        axis.add_patch(Rectangle((x, -level - 0.35), 2.4, 0.7, facecolor=color, edgecolor="black", alpha=0.85))
        text = f"{title}\n{' x '.join(str(part) for part in shape)}"
        axis.text(x + 1.2, -level, text, ha="center", va="center", fontsize=7.5)

    def arrow(start: tuple[float, float], end: tuple[float, float], style: str = "-") -> None:
        axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, linestyle=style, color="0.25"))

    names = [*(f"skip {i + 1}" for i in range(len(down) - 1)), "bottleneck"]
    box(0, 0, "image", model.input_shape[1:], "#dddddd")
    box(7.6, 0, "logits", model.output_shape[1:], "#F0E442")
    for i, (name, shape) in enumerate(zip(names, down, strict=True)):
        bottom = i == len(down) - 1
        box(3.8 if bottom else 0, i + 1, name, shape, "#56B4E9")
        arrow((1.2, -i - 0.35), (3.8, -i - 1.0) if bottom else (1.2, -i - 0.65))
    for i, shape in enumerate(up):
        level = len(up) - i
        box(7.6, level, "upsample, concatenate", shape, "#E69F00")
        arrow((6.2, -level - 1.0) if i == 0 else (8.8, -level - 0.65), (8.8, -level - 0.35))
        arrow((2.4, -level), (7.6, -level), "--")
    arrow((8.8, -0.65), (8.8, -0.35))
    colors = {"MobileNetV2 encoder": "#56B4E9", "decoder": "#E69F00"}
    axis.legend(handles=[Patch(color=color, label=name) for name, color in colors.items()], loc="lower left", ncols=2,
                fontsize=8, frameon=False)  # fmt: skip
    axis.set_title(f"{model.name}: {model.count_params():,} parameters", fontsize=10)
    return figure


def to_array(figure: Figure, dpi: int = 100) -> np.ndarray:
    """A figure as uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: Path, dpi: int = 100) -> None:
    """Writes a figure as PNG; a reader never sees half of it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)


def _class_patches() -> list[Patch]:
    return [Patch(color=color / 255, label=name) for name, color in zip(CLASS_NAMES, CLASS_COLORS, strict=True)]
