"""What is logged under which name: a description with its unit for each scalar, and the page that groups them."""

import re

from tensorboard.plugins.custom_scalar import layout_pb2

from petseg.classes import Classes
from petseg.training import measurements

_SCORES = {
    "iou": "Intersection over union of {name}: pixels that are and were called it, over pixels that are or were.",
    "dice": "Dice score of {name}: twice the common pixels over the sum of both areas.",
    "precision": "Of the pixels called {name}, the share that are.",
    "recall": "Of the pixels that are {name}, the share called so.",
}


def of_measurement(name: str) -> str:
    """The tag of what a step measures: that of the loss is shared with evaluation."""
    return name if name == "loss" else f"optimization/{name}"


SCALARS: dict[str, str] = {
    "accuracy": "Share of valid pixels whose class was right.",
    "mean_iou": "Mean of the classes' intersection over union.",
    "foreground_iou": "Intersection over union of all that is foreground, borders too, against the rest.",
    **{of_measurement(name): text for name, text in {**measurements.MEANS, **measurements.STATE}.items()},
    "speed/images_per_second": "Images per second of training, without compiling, evaluation and checkpoints.",
    "speed/step_time_median": "Median time of a step in the interval, in milliseconds.",
    "speed/step_time_p95": "95th percentile of the time of a step in the interval, in milliseconds.",
    "time_share/input": "Share of the wall clock, 0 to 1, that steps waited for input; unknown with --deterministic.",
    "time_share/evaluation": "Share of the wall clock, 0 to 1, spent in evaluation.",
    "time_share/checkpoints": "Share of the wall clock, 0 to 1, spent in writing checkpoints.",
    "time_share/summaries": "Share of the wall clock, 0 to 1, spent in summaries, pictures and figures.",
    "memory/host": "Resident memory of the process that writes this, in MiB.",
    "memory/device": "The most memory that any one GPU of this process has held, in MiB; only where there is one.",
}

IMAGES: dict[str, str] = {
    "predictions": "The same examples each time: image, truth, prediction, where it is wrong, and how sure it was.",
    "worst": "The examples of the last evaluation with the lowest mean IoU, which stands beside their names.",
    "best": "The examples of the last evaluation with the highest mean IoU, which stands beside their names.",
    "confusion_matrix": "Pixels by true class (rows) and predicted class (columns): share of the row, and count.",
    "training_batch": "The first examples of the first batch as the model sees them: augmented, with the weight map.",
    "model": "The stages of the U-Net with their sizes.",
}

PHOTOGRAPHS = ("predictions", "worst", "best", "training_batch")  # the images that hold photographs

IMAGE_IOU = "image_iou"
SCORES = "Mean IoU of each image of the evaluation, over the classes that occur in it or were predicted."
WEIGHTS = "The trained weights of a layer."
GRADIENTS = "The gradient of a layer's weights in the last step, reduced and unscaled, before clipping."

LOSS_OF_RUN = "final/loss"


def final(classes: Classes) -> dict[str, str]:
    """The scores that stand for the whole run: their tags, and those of the scores; the loss comes last.

    The HParams page shows the first five metrics by name, capitals before small letters, the first beside the flags.
    """
    shown = [each.name for each in classes.members if each.foreground]
    of_classes = {f"final/IoU_{name}": f"iou/{name}" for name in shown}
    return {"final/IoU": "mean_iou", **of_classes, "final/accuracy": "accuracy", LOSS_OF_RUN: "loss"}


def describe(tag: str) -> str:
    """What a scalar is, with its unit.

    Raises:
      KeyError: if there is no such scalar.
    """
    kind, _, name = tag.partition("/")
    if kind == "final":
        scores = {"IoU": "mean_iou", "accuracy": "accuracy", "loss": "loss"}
        of = scores[name] if name in scores else f"iou/{name.removeprefix('IoU_')}"
        return f"At the last evaluation: {describe(of)}"
    return _SCORES[kind].format(name=name) if kind in _SCORES else SCALARS[tag]


def _charts(classes: Classes) -> dict[str, dict[str, list[str]]]:
    """The charts of the custom-scalars page: category, title, tags."""
    optimization = [tag for tag in SCALARS if tag.startswith("optimization/")]
    return {
        "overview": {"loss": ["loss"], "mean IoU": ["mean_iou"], "accuracy": ["accuracy"]},
        "classes": {
            title: [f"{score}/{re.escape(name)}" for name in classes.names]
            for title, score in {"IoU": "iou", "Dice": "dice", "precision": "precision", "recall": "recall"}.items()
        },
        "optimization": {tag.removeprefix("optimization/").replace("_", " "): [tag] for tag in optimization},
        "speed": {
            "images/s": ["speed/images_per_second"],
            "step time (ms)": ["speed/step_time_median", "speed/step_time_p95"],
            "share of time": [tag for tag in SCALARS if tag.startswith("time_share/")],
            "memory (MiB)": ["memory/host", "memory/device"],
        },
    }


def layout(classes: Classes) -> layout_pb2.Layout:
    """The arrangement of TensorBoard's custom-scalars page."""
    return layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title=title,
                chart=[
                    layout_pb2.Chart(
                        title=name, multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$" for tag in charted])
                    )
                    for name, charted in charts.items()
                ],
            )
            for title, charts in _charts(classes).items()
        ]
    )
