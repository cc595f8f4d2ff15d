"""The tables and the plot of --measure=scaling."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from petseg.benchmark.scaling_model import MICRO_BATCHES
from petseg.benchmark.tables import heading, row

SCALINGS = ("weak", "strong")


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Measured points beside the model's, the model, variants, and predictions for each machine."""
    (found,) = rows
    parts = [_points(found), _model(found), _variants(found["variants"])]
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


def _variants(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    if not variants:
        return []
    lines = heading("", "batch", "step, ms", "images/s", "all-reduce alone, ms", "MB", "kB an image", "packs")
    for each in variants:
        cells = (
            each["title"],
            each["batch_size"],
            f"{1e3 * each['step']:.0f}",
            f"{each['batch_size'] / each['step']:.0f}",
            f"{1e3 * each['all_reduce']:.1f}",
            f"{each['bytes'] / 1e6:.2f}",
            f"{2 * each['bytes'] / each['batch_size'] / 1e3:.1f}",  # both of two replicas
            each["packs"],
        )
        lines.append(row(*cells))
    return lines


def _machine(machine: str, predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = heading(
        "GPUs", "scaling", "batch", "compute, ms", "gradients, ms", "batch norms, ms", "input, ms", "images/s",
        "efficiency", "in float16", f"with {MICRO_BATCHES[-1]} micro-batches", "all-reduce hidden", "bottleneck",
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
            f"{each['float16']:.2f}",
            f"{each['micro_batches']:.2f}" if each["scaling"] == "weak" else "",
            f"{each['hidden']:.2f}",
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


def draw(rows: Sequence[Mapping[str, Any]], file: str) -> None:
    """Plots throughput and efficiency: this machine's points with the model's, and the predictions for GPUs."""
    from matplotlib.figure import Figure

    from petseg.files import write_bytes
    from petseg.reporting import pictures

    (found,) = rows
    figure = Figure(figsize=(12, 9), layout="constrained")
    (here, here_efficiency), (there, there_efficiency) = figure.subplots(2, 2)
    groups = [(kind, scaling) for kind in dict.fromkeys(p["kind"] for p in found["points"]) for scaling in SCALINGS]
    for number, (kind, scaling) in enumerate(groups):
        points = [p for p in found["points"] if p["kind"] == kind and p["scaling"] in (scaling, "both")]
        numbers = [point["number"] for point in points]
        for axis, unit in ((here, 1.0), (here_efficiency, _speed(points[0], "step"))):
            measured, predicted = ([_speed(p, name) / unit for p in points] for name in ("step", "predicted"))
            axis.plot(numbers, measured, f"C{number}o", label=f"{kind}, {scaling}")
            axis.plot(numbers, predicted, f"C{number}--")
    title, label = "this machine: measured (dots), model (dashes)", "replicas or workers, which share the cores"
    here.set(title=title, xlabel=label, ylabel="images/s", xticks=sorted({p["number"] for p in found["points"]}))
    here_efficiency.set(title="the same over the speed of one", xlabel=label, ylabel="factor", xticks=here.get_xticks())
    for number, machine in enumerate(dict.fromkeys(each["machine"] for each in found["predictions"])):
        for scaling, style in zip(SCALINGS, ("-", "--"), strict=True):
            rows = [each for each in found["predictions"] if (each["machine"], each["scaling"]) == (machine, scaling)]
            gpus = [each["gpus"] for each in rows]
            for axis, name in ((there, "images_per_second"), (there_efficiency, "efficiency")):
                axis.plot(gpus, [each[name] for each in rows], f"C{number}{style}", label=f"{scaling}: {machine}")
    there.set(title="predicted: weak scaling (lines), strong (dashes)", ylabel="images/s", yscale="log")
    there_efficiency.set(title="predicted", ylabel="efficiency", ylim=(0, 1.05))
    for axis in (there, there_efficiency):
        axis.set_xscale("log", base=2)
        axis.set_xlabel("GPUs")
    for axis in (here, here_efficiency):
        axis.set_ylim(0, None)
    for axis in (here, here_efficiency, there, there_efficiency):
        axis.grid(alpha=0.3)
    here.legend(frameon=False, fontsize=8)
    there_efficiency.legend(frameon=False, fontsize=6, loc="lower left")
    write_bytes(Path(file), pictures.to_png(figure))


def _speed(point: Mapping[str, Any], seconds: str) -> float:
    return point["batch_size"] / point[seconds]
