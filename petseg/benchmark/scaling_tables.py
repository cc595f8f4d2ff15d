"""The tables of --measure=scaling."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from petseg.benchmark.tables import heading, row

SCALINGS = ("weak", "strong")


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Measured points beside the model's, the model, and predictions for each machine."""
    (found,) = rows
    parts = [_points(found), _model(found)]
    for machine in dict.fromkeys(each["machine"] for each in found["predictions"]):
        parts.append(_machine(machine, [each for each in found["predictions"] if each["machine"] == machine]))
    return "\n\n".join("\n".join(part) for part in parts if part)


def _points(found: Mapping[str, Any]) -> list[str]:
    lines = heading(
        "", "scaling", "batch", "step, ms", "predicted, ms", "of it network", "error", "processor time, ms",
        "predicted, ms", "all-reduce alone, ms", "predicted, ms", "",
    )  # fmt: skip
    for point in found["points"]:
        cells = (
            _name(point["number"], point["kind"]),
            point["scaling"],
            point["batch_size"],
            f"{1e3 * point['step']:.0f}",
            f"{1e3 * point['predicted']:.0f}",
            f"{1e3 * point['predicted_network']:.1f}",
            f"{point['error']:+.0%}",
            f"{1e3 * point['busy']:.0f}",
            f"{1e3 * point['predicted_busy']:.0f}",
            f"{1e3 * point['all_reduce']:.1f}",
            f"{1e3 * point['predicted_all_reduce']:.1f}",
            "fitted" if point["fitted"] else "held out",
        )
        lines.append(row(*cells))
    errors = [abs(point["error"]) for point in found["points"] if not point["fitted"]]
    if errors:
        within = sum(error <= 0.2 for error in errors)
        lines += [
            "",
            f"{within} of the {len(errors)} points held out are within 20%; the worst is {max(errors):.0%} off",
        ]
    return lines


def _name(number: int, kind: str) -> str:
    return f"{number} {kind.removesuffix('s') if number == 1 else kind}"


def _model(found: Mapping[str, Any]) -> list[str]:
    model, point = found["model"], next(point for point in found["points"] if point["number"] == 2)
    lines = [
        f"- {what}: {1e3 * model[name][0]:.0f} ms a step and {1e3 * model[name][1]:.2f} ms an image"
        for name, what in (("alone", "a single replica"), ("busy", "its processor time"))
    ]
    lines.append(f"- several share {model['cores']} cores: as long as a single one, or processor time of all / cores")
    for kind, link in model["links"].items():
        lines.append(
            f"- all-reduce of {kind}: {1e6 * link['latency']:.0f} us a message and {link['bandwidth'] / 1e9:.2f} GB/s"
        )
    lines.append(
        f"- all-reduces of a step: one of {point['bytes'] / 1e6:.2f} MB, and {point['small_reduces']} small ones of "
        "synchronised batch norms"
    )
    return [*lines, f"- input: {found['input_per_host']:.0f} images/s of this host"]


def _machine(machine: str, predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = heading(
        "GPUs", "scaling", "batch", "compute, ms", "gradients, ms", "batch norms, ms", "input, ms", "images/s",
        "efficiency", "bottleneck",
    )  # fmt: skip
    for each in predictions:
        cells = (
            each["gpus"],
            each["scaling"],
            f"{each['batch_size']:.0f}",
            f"{1e3 * each['compute']:.1f}",
            f"{1e3 * each['gradients']:.2f}",
            f"{1e3 * each['norms']:.2f}",
            f"{1e3 * each['input']:.1f}",
            f"{each['images_per_second']:.0f}",
            f"{each['efficiency']:.2f}",
            each["bottleneck"],
        )
        lines.append(row(*cells))
    lines.append("")
    for scaling in SCALINGS:
        changes = _changes([each for each in predictions if each["scaling"] == scaling])
        lines.append(f"- {scaling} scaling: " + ", then ".join(changes))
    return [f"Predicted: {machine}", "", *lines]


def _changes(predictions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The numbers of GPUs at which the bottleneck changes."""
    before = None
    for each in predictions:
        if each["bottleneck"] != before:
            before = each["bottleneck"]
            yield f"{before} from {each['gpus']} GPU{'s' if each['gpus'] > 1 else ''} on"
