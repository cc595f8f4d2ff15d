"""TensorBoard tags: descriptions with units, and the layout of the custom-scalars page."""

import re

from tensorboard.plugins.custom_scalar import layout_pb2

from petseg.classes import Classes
from petseg.evaluation import metrics
from petseg.training import measurements


def measurement_tag(name: str) -> str:
    """The tag of a measurement of the training step; `loss` shares its chart with evaluation."""
    return name if name == "loss" else f"optimization/{name}"


SCALARS: dict[str, str] = {
    **{name: text for name, text in metrics.DESCRIPTIONS.items() if "{name}" not in text},
    **{measurement_tag(name): text for name, text in measurements.DESCRIPTIONS.items()},
    "speed/images_per_second": "Training images per second of wall-clock time that is neither compilation nor "
    "evaluation, checkpoints, summaries.",
    "speed/step_time_median": "Median step time since the last summary, in milliseconds.",
    "speed/step_time_p95": "95th percentile of the step time since the last summary, in milliseconds.",
    "speed/model_tflops": "10^12 floating-point operations per second of the network's convolutions and products.",
    "time_share/input": "Share of wall-clock time, 0 to 1, the host waited for input; unknown with --deterministic.",
    "time_share/evaluation": "Share of wall-clock time, 0 to 1, spent in evaluation.",
    "time_share/checkpoints": "Share of wall-clock time, 0 to 1, spent writing checkpoints.",
    "time_share/summaries": "Share of wall-clock time, 0 to 1, spent on summaries and figures.",
    "memory/host": "Resident memory of the chief process, in MiB.",
}

ON_GPUS: dict[str, str] = {
    "speed/mfu": "The same as a share, 0 to 1, of the devices' peak at --precision; for GPUs of the table in "
    "runtime/gpu_peaks.py, and with --peak_tflops on a CPU too.",
    "speed/gpu_utilisation": "Share of time, 0 to 1, in which a kernel ran just before the summary, mean of the GPUs; "
    "needs nvidia-ml-py.",
    "memory/device": "Highest peak memory of the GPUs of the chief process, in MiB; only with a GPU.",
    "memory/device_in_use": "Highest memory in use of these GPUs, by all processes, in MiB; needs nvidia-ml-py.",
}

IMAGES: dict[str, str] = {
    "predictions": "The same examples each time: image, true mask, predicted mask, errors, confidence.",
    "worst": "The examples with the lowest mean IoU in this evaluation, with their scores.",
    "best": "The examples with the highest mean IoU in this evaluation, with their scores.",
    "confusion_matrix": "Pixels by true class (rows) and predicted class (columns): fraction of the row and count.",
    "training_batch": "The first examples of the first batch, augmented as in training, with their pixel weights.",
    "model": "The stages of the U-Net with their sizes.",
}

PHOTOGRAPHS = ("predictions", "worst", "best", "training_batch")  # images that contain photographs, logged as JPEG

IMAGE_IOU = "image_iou"
SCORES = "Mean IoU of each image, over the classes that occur in its true or predicted mask."
WEIGHTS = "The trained weights of a layer."
GRADIENTS = "Gradients of a layer's weights in the last step, reduced and unscaled, before clipping."

LOSS_OF_RUN = "final/loss"


def final(classes: Classes) -> dict[str, str]:
    """The metrics of the HParams page: their tags, and the tags of the scores they show; the loss comes last.

    TensorBoard shows the first five in ASCII order, the first beside the flags.
    """
    shown = [each.name for each in classes.members if each.foreground]
    of_classes = {f"final/IoU_{name}": f"iou/{name}" for name in shown}
    return {"final/IoU": "mean_iou", **of_classes, "final/accuracy": "accuracy", LOSS_OF_RUN: "loss"}


def describe(tag: str) -> str:
    """Description of a scalar with its unit; by default the words of its tag."""
    if described := {**SCALARS, **ON_GPUS}.get(tag):
        return described
    kind, _, name = tag.partition("/")
    if kind == "final":
        scores = {"IoU": "mean_iou", "accuracy": "accuracy", "loss": "loss"}
        score = scores[name] if name in scores else f"iou/{name.removeprefix('IoU_')}"
        return f"At the last evaluation: {describe(score)}"
    if kind in metrics.DESCRIPTIONS:
        return metrics.DESCRIPTIONS[kind].format(name=name)
    words = kind.replace("_", " ").capitalize()
    return f"{words} of {name}." if name else f"{words}."


def _charts(classes: Classes) -> dict[str, dict[str, list[str]]]:
    """Charts of the custom-scalars page: category -> title -> tags."""
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
            "TFLOP/s of the network": ["speed/model_tflops"],
            "share of peak (MFU), GPU utilisation": ["speed/mfu", "speed/gpu_utilisation"],
            "share of time": [tag for tag in SCALARS if tag.startswith("time_share/")],
            "memory (MiB)": ["memory/host", "memory/device", "memory/device_in_use"],
        },
    }


def layout(classes: Classes) -> layout_pb2.Layout:
    """Layout of TensorBoard's custom-scalars page."""
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
