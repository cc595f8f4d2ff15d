"""Diagram of a U-Net: stages with their sizes, skip connections."""

from collections.abc import Sequence

import keras
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle

from petseg.models.layers import InferenceMode


def draw(model: keras.Model) -> Figure | None:
    """Draws a box for each stage and arrows for the connections; None unless the model is a U-Net with an encoder."""
    encoders = [layer for layer in model.layers if layer.name == "encoder" and isinstance(layer, InferenceMode)]
    joints = (keras.layers.Concatenate, keras.layers.Add)
    joined = [layer for layer in model.layers if isinstance(layer, joints)]
    down = [tuple(output.shape[1:]) for output in encoders[0].output] if encoders else []
    up = [tuple(layer.output.shape[1:]) for layer in joined]
    if not encoders or [shape[:2] for shape in up] != [shape[:2] for shape in reversed(down[:-1])]:
        return None
    how = "concatenate" if isinstance(joined[0], keras.layers.Concatenate) else "add"
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
        box(7.6, level, f"upsample, {how}", shape, "#E69F00")
        arrow((6.2, -level - 1.0) if i == 0 else (8.8, -level - 0.65), (8.8, -level - 0.35))
        arrow((2.4, -level), (7.6, -level), "--")
    arrow((8.8, -0.65), (8.8, -0.35))
    colors = {"encoder": "#56B4E9", "decoder": "#E69F00"}
    axis.legend(handles=[Patch(color=color, label=name) for name, color in colors.items()], loc="lower left", ncols=2,
                fontsize=8, frameon=False)  # fmt: skip
    axis.set_title(f"{model.name}: {model.count_params():,} parameters", fontsize=10)
    return figure
