"""What is logged under which name: a description with its unit for each scalar, and the page that groups them."""

from tensorboard.plugins.custom_scalar import layout_pb2

from petseg.classes import CLASS_NAMES
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
    **{f"{score}/{name}": text.format(name=name) for score, text in _SCORES.items() for name in CLASS_NAMES},
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

IMAGE_IOU = "image_iou"
SCORES = "Mean IoU of each image of the evaluation, over the classes that occur in it or were predicted."
WEIGHTS = "The trained weights of a layer."
GRADIENTS = "The gradient of a layer's weights in the last step, reduced and unscaled, before clipping."

# The HParams page shows the first five metrics by name, capitals before small letters, the first beside the flags.
FINAL: dict[str, str] = {
    "final/IoU": "mean_iou",
    "final/IoU_border": "iou/border",
    "final/IoU_pet": "iou/pet",
    "final/accuracy": "accuracy",
    "final/loss": "loss",
}
SCALARS |= {tag: f"At the last evaluation: {SCALARS[of]}" for tag, of in FINAL.items()}

_CHARTS = {
    "overview": {"loss": ["loss"], "mean IoU": ["mean_iou"], "accuracy": ["accuracy"]},
    "classes": {
        "IoU": [f"iou/{name}" for name in CLASS_NAMES],
        "Dice": [f"dice/{name}" for name in CLASS_NAMES],
        "border": ["precision/border", "recall/border"],
    },
    "optimization": {
        tag.removeprefix("optimization/").replace("_", " "): [tag] for tag in SCALARS if tag.startswith("optimization/")
    },
    "speed": {
        "images/s": ["speed/images_per_second"],
        "step time (ms)": ["speed/step_time_median", "speed/step_time_p95"],
        "share of time": [tag for tag in SCALARS if tag.startswith("time_share/")],
        "memory (MiB)": ["memory/host", "memory/device"],
    },
}


def layout() -> layout_pb2.Layout:
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
            for title, charts in _CHARTS.items()
        ]
    )
