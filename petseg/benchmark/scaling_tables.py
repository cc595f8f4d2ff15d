"""The tables of --measure=scaling."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from petseg.benchmark.tables import table

POINTS = {
    "": "{name}",
    "scaling": "{scaling}",
    "batch": "{batch_size}",
    "step, ms": "{step_ms:.0f}",
    "predicted, ms": "{predicted_ms:.0f}",
    "of it network": "{predicted_network_ms:.1f}",
    "error": "{error:+.0%}",
    "processor time, ms": "{busy_ms:.0f}",
    "predicted processor time, ms": "{predicted_busy_ms:.0f}",
    "all-reduce alone, ms": "{all_reduce_ms:.1f}",
    "predicted all-reduce, ms": "{predicted_all_reduce_ms:.1f}",
    "use": "{use}",
}
PREDICTIONS = {
    "GPUs": "{gpus}",
    "scaling": "{scaling}",
    "batch": "{batch_size:.0f}",
    "compute, ms": "{compute_ms:.1f}",
    "gradients, ms": "{gradients_ms:.2f}",
    "batch norms, ms": "{norms_ms:.2f}",
    "input, ms": "{input_ms:.1f}",
    "images/s": "{images_per_second:.0f}",
    "efficiency": "{efficiency:.2f}",
    "bottleneck": "{bottleneck}",
}


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Measured points beside the model's, the model, and predictions for each machine."""
    (found,) = rows
    parts = [_points(found["points"]), _model(found)]
    for machine, predictions in itertools.groupby(found["predictions"], key=lambda each: each["machine"]):
        parts.append(_machine(machine, list(predictions)))
    return "\n\n".join("\n".join(part) for part in parts)


def _points(points: Sequence[Mapping[str, Any]]) -> list[str]:
    named = [
        {
            **point,
            "name": f"{point['number']} {point['kind'].removesuffix('s') if point['number'] == 1 else point['kind']}",
            "use": "fitted" if point["fitted"] else "held out",
        }
        for point in points
    ]
    errors = [abs(point["error"]) for point in points if not point["fitted"]]
    note = (
        f"{sum(error <= 0.2 for error in errors)} of the {len(errors)} points held out are within 20%; the worst is "
        f"{max(errors):.0%} off"
    )
    return [*table(named, POINTS), "", note]


def _model(found: Mapping[str, Any]) -> list[str]:
    model, point = found["model"], next(point for point in found["points"] if point["number"] == 2)
    lines = [
        f"- {what}: {1e3 * model[name][0]:.0f} ms a step and {1e3 * model[name][1]:.2f} ms an image"
        for name, what in (("alone", "a single replica"), ("busy", "its processor time"))
    ]
    links = [
        f"- all-reduce of {kind}: {1e6 * link['latency']:.0f} us a message and {link['bandwidth'] / 1e9:.2f} GB/s"
        for kind, link in model["links"].items()
    ]
    return [
        *lines,
        f"- several share {model['cores']} cores: as long as a single one, or processor time of all / cores",
        *links,
        f"- all-reduces of a step: one of {point['bytes'] / 1e6:.2f} MB, and {point['small_reduces']} small ones of "
        "synchronised batch norms",
        f"- input: {found['input_per_host']:.0f} images/s of this host",
    ]


def _machine(machine: str, predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The predictions for a machine, and the numbers of GPUs at which the bottleneck changes."""
    lines = [f"Predicted: {machine}", "", *table(predictions, PREDICTIONS), ""]
    for scaling, rows in itertools.groupby(predictions, key=lambda each: each["scaling"]):
        changes = []
        for bottleneck, same in itertools.groupby(rows, key=lambda each: each["bottleneck"]):
            gpus = next(same)["gpus"]
            changes.append(f"{bottleneck} from {gpus} GPU{'s' if gpus > 1 else ''} on")
        lines.append(f"- {scaling} scaling: {', then '.join(changes)}")
    return lines
