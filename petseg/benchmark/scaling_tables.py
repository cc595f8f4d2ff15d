"""The tables and the picture of --measure=scaling."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from petseg.benchmark.scaling_model import MICRO_BATCHES

SCALINGS = ("weak", "strong")


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was measured beside what the model says, and what it says of larger machines."""
    (found,) = rows
    parts = [_of_points(found), _of_model(found), _of_variants(found["variants"])]
    machines = dict.fromkeys(row["machine"] for row in found["predictions"])
    for machine in machines:
        parts.append(_of_machine(machine, [row for row in found["predictions"] if row["machine"] == machine]))
    return "\n\n".join("\n".join(part) for part in parts if part)


def _of_points(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "| | scaling | batch | step, ms | predicted, ms | of it network | error | processor time, ms | predicted, ms "
        "| all-reduce alone, ms | predicted, ms | |",
        _row(*["---"] * 12),
    ]
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
        lines.append(_row(*cells))
    errors = [abs(point["error"]) for point in found["points"] if not point["fitted"]]
    if errors:
        within = sum(error <= 0.2 for error in errors)
        lines += [
            "",
            f"{within} of the {len(errors)} points held out are within 20%; the worst is {max(errors):.0%} off",
        ]
    return lines


def _row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _name(number: int, kind: str) -> str:
    return f"{number} {kind.removesuffix('s') if number == 1 else kind}"


def _of_model(found: Mapping[str, Any]) -> list[str]:
    model, point = found["model"], next(point for point in found["points"] if point["number"] == 2)
    lines = [
        f"- {what}: {1e3 * model[name][0]:.0f} ms a step and {1e3 * model[name][1]:.2f} ms an image"
        for name, what in (("alone", "one replica by itself"), ("busy", "its processor time"))
    ]
    lines.append(f"- several share {model['cores']} cores: as long as one by itself, or processor time of all / cores")
    for kind, link in model["links"].items():
        lines.append(
            f"- all-reduce of {kind}: {1e6 * link['latency']:.0f} us a message and {link['bandwidth'] / 1e9:.2f} GB/s"
        )
    lines.append(
        f"- all-reduces of a step: one of {point['bytes'] / 1e6:.2f} MB, and {point['small_reduces']} small ones of "
        "synchronised batch norms"
    )
    return [*lines, f"- input: {found['input_per_host']:.0f} images/s of this host"]


def _of_variants(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    if not variants:
        return []
    lines = [
        "| | batch | step, ms | images/s | all-reduce alone, ms | MB | kB an image | packs |",
        _row(*["---"] * 8),
    ]
    for row in variants:
        cells = (
            row["title"],
            row["batch_size"],
            f"{1e3 * row['step']:.0f}",
            f"{row['batch_size'] / row['step']:.0f}",
            f"{1e3 * row['all_reduce']:.1f}",
            f"{row['bytes'] / 1e6:.2f}",
            f"{2 * row['bytes'] / row['batch_size'] / 1e3:.1f}",  # both of two replicas
            row["packs"],
        )
        lines.append(_row(*cells))
    return lines


def _of_machine(machine: str, predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"Predicted: {machine}",
        "",
        "| GPUs | scaling | batch | compute, ms | gradients, ms | batch norms, ms | input, ms | images/s | efficiency "
        f"| in float16 | with {MICRO_BATCHES[-1]} micro-batches | all-reduce hidden | bottleneck |",
        _row(*["---"] * 13),
    ]
    for row in predictions:
        cells = (
            row["gpus"],
            row["scaling"],
            f"{row['batch_size']:.0f}",
            f"{1e3 * row['compute']:.1f}",
            f"{1e3 * row['gradients']:.2f}",
            f"{1e3 * row['norms']:.2f}",
            f"{1e3 * row['input']:.1f}",
            f"{row['images_per_second']:.0f}",
            f"{row['efficiency']:.2f}",
            f"{row['float16']:.2f}",
            f"{row['micro_batches']:.2f}" if row["scaling"] == "weak" else "",
            f"{row['hidden']:.2f}",
            row["bottleneck"],
        )
        lines.append(_row(*cells))
    lines.append("")
    for scaling in SCALINGS:
        changes = _changes([row for row in predictions if row["scaling"] == scaling])
        lines.append(f"- {scaling} scaling: " + ", then ".join(changes))
    return lines


def _changes(predictions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Where the bottleneck becomes another one."""
    before = None
    for row in predictions:
        if row["bottleneck"] != before:
            before = row["bottleneck"]
            yield f"{before} from {row['gpus']} GPU{'s' if row['gpus'] > 1 else ''} on"


def draw(rows: Sequence[Mapping[str, Any]], file: str) -> None:
    """Draws throughput and efficiency: this machine's points with the model's, and those predicted for GPUs."""
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
    for number, machine in enumerate(dict.fromkeys(row["machine"] for row in found["predictions"])):
        for scaling, style in zip(SCALINGS, ("-", "--"), strict=True):
            of_gpus = [row for row in found["predictions"] if (row["machine"], row["scaling"]) == (machine, scaling)]
            gpus = [row["gpus"] for row in of_gpus]
            for axis, name in ((there, "images_per_second"), (there_efficiency, "efficiency")):
                axis.plot(gpus, [row[name] for row in of_gpus], f"C{number}{style}", label=f"{scaling}: {machine}")
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
