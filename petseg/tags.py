"""What is logged under which name: a description with its unit for each scalar, and the page that groups them."""

from tensorboard.plugins.custom_scalar import layout_pb2

from petseg.config import CLASS_NAMES

_SCORES = {
    "iou": "Intersection over union of {name}: pixels that are and were called it, over pixels that are or were.",
    "dice": "Dice score of {name}: twice the common pixels over the sum of both areas.",
    "precision": "Of the pixels called {name}, the share that are.",
    "recall": "Of the pixels that are {name}, the share called so.",
}

SCALARS: dict[str, str] = {
    "loss": "Weighted cross-entropy per pixel, in nats.",
    "accuracy": "Share of valid pixels whose class was right.",
    "mean_iou": "Mean of the classes' intersection over union.",
    **{f"{score}/{name}": text.format(name=name) for score, text in _SCORES.items() for name in CLASS_NAMES},
    "learning_rate": "Learning rate of the last step.",
    "gradient_norm": "Global norm of the gradients before clipping, mean over the interval.",
    "weight_norm": "Global norm of the trained weights.",
    "update_ratio": "Global norm of an update over that of the weights, mean over the interval; 1e-3 is usual.",
    "loss_scale": "What the loss is multiplied with against float16 underflow; 1 in other precisions.",
    "skipped_steps": "Steps since the start of the run that changed nothing, for a gradient was not finite.",
    "images_per_second": "Images per second of training, without compiling, evaluation and checkpoints.",
}

_CHARTS = {
    "overview": {"loss": ["loss"], "mean IoU": ["mean_iou"], "accuracy": ["accuracy"]},
    "classes": {
        "IoU": [f"iou/{name}" for name in CLASS_NAMES],
        "Dice": [f"dice/{name}" for name in CLASS_NAMES],
        "border": ["precision/border", "recall/border"],
    },
    "optimization": {
        "learning rate": ["learning_rate"],
        "gradient norm": ["gradient_norm"],
        "weight norm": ["weight_norm"],
        "update over weights": ["update_ratio"],
        "loss scale": ["loss_scale"],
        "skipped steps": ["skipped_steps"],
    },
    "speed": {"images/s": ["images_per_second"]},
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
