"""The tables and the picture of --measure=scaling."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from petseg.benchmark.scaling_model import FITTED_NUMBERS, REPLICAS


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was measured beside what the model says, and what it says of larger machines."""
    (found,) = rows
    return "\n".join(
        [*_of_points(found), "", *_of_model(found), "", *_of_variants(found), *_of_predictions(found["predictions"])]
    )


def is_held_out(point: Mapping[str, Any]) -> bool:
    """Whether the model was not fitted to a point: all but those of two, and of one replica."""
    return point["number"] not in FITTED_NUMBERS or (point["number"] == 1 and point["kind"] != REPLICAS)


def _of_points(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| | scaling | batch | step, s | predicted, s | error | all-reduce alone, ms | predicted, ms | |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for point, reduce in zip(found["points"], found["predicted_all_reduce"], strict=True):
        error = point["predicted"] / point["step"] - 1
        yield _row(
            _name(point["number"], point["kind"]),
            point["scaling"],
            point["batch_size"],
            f"{point['step']:.3f}",
            f"{point['predicted']:.3f}",
            f"{error:+.0%}",
            f"{1e3 * point['all_reduce']:.1f}",
            f"{1e3 * reduce:.1f}",
            "held out" if is_held_out(point) else "fitted",
        )
    errors = [abs(point["predicted"] / point["step"] - 1) for point in found["points"] if is_held_out(point)]
    if errors:
        within = sum(error <= 0.2 for error in errors)
        yield f"\n{within} of the {len(errors)} points held out are within 20%; the worst is {max(errors):.0%} off"


def _row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _name(number: int, kind: str) -> str:
    return f"{number} {kind.removesuffix('s') if number == 1 else kind}"


def _of_model(found: Mapping[str, Any]) -> Iterator[str]:
    model, point = found["model"], next(point for point in found["points"] if point["number"] == 2)
    yield (
        f"- compute: {1e3 * model['fixed']:.0f} ms a step and replica, {1e3 * model['per_image']:.2f} ms an image, on "
        "all cores"
    )
    for kind, efficiency in model["efficiency"].items():
        link = model["links"][kind]
        yield (
            f"- several {kind}: {efficiency:.2f} times as fast as one; all-reduce {1e6 * link['latency']:.0f} us and "
            f"{link['bandwidth'] / 1e9:.2f} GB/s"
        )
    yield (
        f"- all-reduces of a step: one of {point['bytes'] / 1e6:.1f} MB, and {point['small_reduces']} small ones of "
        "synchronised batch norms"
    )
    yield f"- input: {found['input_per_host']:.0f} images/s of this host"


def _of_variants(found: Mapping[str, Any]) -> Iterator[str]:
    if found["variants"]:
        yield "| the whole batch on | step, s | all-reduce alone, ms | MB | packs |"
        yield "| --- | --- | --- | --- | --- |"
        for row in found["variants"]:
            yield (
                f"| {row['title']} | {row['step']:.3f} | {1e3 * row['all_reduce']:.1f} | {row['bytes'] / 1e6:.1f} "
                f"| {row['packs']} |"
            )
        yield ""


def _of_predictions(predictions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield (
        "| GPUs | scaling | batch | compute, ms | gradients, ms | batch norms, ms | input, ms | images/s | efficiency "
        "| in float16 | all-reduce hidden | bottleneck |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in predictions:
        yield _row(
            row["gpus"],
            row["scaling"],
            f"{row['batch_size']:.0f}",
            f"{1e3 * row['compute']:.1f}",
            f"{1e3 * row['gradients']:.2f}",
            f"{1e3 * row['norms']:.2f}",
            f"{1e3 * row['input']:.1f}",
            f"{row['images_per_second']:.0f}",
            f"{row['efficiency']:.2f}",
            f"{row['efficiency_in_float16']:.2f}",
            f"{row['hidden']:.2f}",
            row["bottleneck"],
        )
    yield ""
    for scaling in ("weak", "strong"):
        yield f"- {scaling} scaling: " + ", then ".join(_changes([r for r in predictions if r["scaling"] == scaling]))


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
    figure = Figure(figsize=(11, 8), layout="constrained")
    (here, here_efficiency), (there, there_efficiency) = figure.subplots(2, 2)
    color = 0
    for kind in dict.fromkeys(point["kind"] for point in found["points"]):
        for scaling in ("weak", "strong"):
            points = [p for p in found["points"] if p["kind"] == kind and p["scaling"] in (scaling, "both")]
            numbers = [point["number"] for point in points]
            for axis, unit in ((here, 1.0), (here_efficiency, _speed(points[0], "step"))):
                axis.plot(numbers, [_speed(p, "step") / unit for p in points], f"C{color}o", label=f"{kind}, {scaling}")
                axis.plot(numbers, [_speed(p, "predicted") / unit for p in points], f"C{color}--")
            color += 1
    here.set(title="this machine: measured (dots), model (lines)", xlabel="replicas or workers", ylabel="images/s")
    here_efficiency.set(title="the same over the speed of one", xlabel="replicas or workers", ylabel="factor")
    for number, scaling in enumerate(("weak", "strong")):
        of_gpus = [row for row in found["predictions"] if row["scaling"] == scaling]
        gpus = [row["gpus"] for row in of_gpus]
        there.plot(gpus, [row["images_per_second"] for row in of_gpus], f"C{number}-", label=scaling)
        there_efficiency.plot(gpus, [row["efficiency"] for row in of_gpus], f"C{number}-", label=scaling)
        in_float16 = [row["efficiency_in_float16"] for row in of_gpus]
        there_efficiency.plot(gpus, in_float16, f"C{number}:", label=f"{scaling}, gradients in float16")
    there.set(title="predicted", xlabel="GPUs", ylabel="images/s", xscale="log", yscale="log")
    there_efficiency.set(title="predicted", xlabel="GPUs", ylabel="efficiency", xscale="log", ylim=(0, 1.05))
    for axis in (here, here_efficiency, there, there_efficiency):
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    for axis in (here, here_efficiency):
        axis.set_ylim(0, None)
    write_bytes(Path(file), pictures.to_png(figure))


def _speed(point: Mapping[str, Any], seconds: str) -> float:
    return point["batch_size"] / point[seconds]
