"""Tests and measures petseg on this machine's GPU, in a report: python -m petseg.benchmark --measure=gpu [--smallest].

Parts run one after the other, each within its share of --minutes; what fails or does not fit is named in the report,
and the others continue. All parts but the time to a score draw their own data.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from petseg.benchmark import processes, time_to_score
from petseg.benchmark.tables import heading, row
from petseg.config import Config, command_line
from petseg.config.options import Group, option
from petseg.errors import ConfigError, PetsegError, one_line
from petseg.files import write_text
from petseg.runs.checkpoint_files import steps as steps_in
from petseg.runs.work_directory import WorkDirectory

# The arithmetic of steps: flags by the name in the report.
ARITHMETIC = {
    "float32 with TF32": ("--precision=float32",),
    "float16": ("--precision=mixed_float16",),
    "bfloat16": ("--precision=mixed_bfloat16",),
    "float32": ("--precision=float32", "--notensor_float_32"),
}
WITH_TF32, FLOAT16, *_ = ARITHMETIC
TARGETS = (0.7416, 0.79)
LOSS_BOUND = 1e-4  # relative, of 20 steps on a split device
TINY = ("--image_size=32", "--inner_size=", "--encoder=tiny", "--encoder_alpha=0.35", "--batch_size=8",
        "--warmup_steps=0")  # fmt: skip
Row = dict[str, Any]
logger = logging.getLogger("petseg.benchmark")


@dataclasses.dataclass(frozen=True)
class GpuReportConfig(Group):
    """Settings of --measure=gpu."""

    report: str = option("gpu.md", "file for the report of --measure=gpu; its numbers go beside it, as JSON")
    minutes: float = option(8.0, "longest duration of --measure=gpu", unit="minutes", above=0)
    smallest: bool = option(False, "the smallest sizes, to try --measure=gpu itself, also without a GPU")

    def check(self) -> None:
        """Raises ConfigError if the report cannot be written there."""
        file = Path(self.report)
        if file.suffix != ".md" or not file.absolute().parent.is_dir():
            raise ConfigError(f"--report={self.report}: must be a .md file in a folder that exists")


@dataclasses.dataclass(frozen=True)
class Case:
    """The work of one process for a part: a function of `gpu_parts`, and the columns that name its rows."""

    function: str
    arguments: tuple[Any, ...]
    title: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the report."""

    title: str  # its heading
    share: float  # of the whole time
    rows: Callable[[float], list[Row]]  # measures it within some seconds


def measure(config: GpuReportConfig, flags: Sequence[str], scratch: Path) -> list[Row]:
    """Measures all parts, and writes the report after each.

    Returns for each part its `title`, `seconds`, and `rows`; a row with `error` failed.
    """
    deadline = time.monotonic() + 60 * config.minutes
    examples = Recipes(config.smallest, flags, scratch)
    shown = ["--smallest", *flags] if config.smallest else flags
    failed = run_case(Case("draw", (str(scratch / "drawn"), 24 if config.smallest else 256)), 60.0)
    found: list[Row] = [{"title": "Drawn data", "seconds": 0.0, "rows": failed}] if failed else []
    for part in parts(examples):
        began = time.monotonic()
        seconds = min(part.share * 60 * config.minutes, deadline - began)
        logger.info("%s: at most %.0f s", part.title, seconds)
        try:
            rows = part.rows(seconds)
        except Exception as error:  # also a result that makes no sense: the other parts continue
            rows = [{"error": str(error) if isinstance(error, PetsegError) else one_line(error)}]
        found.append({"title": part.title, "seconds": time.monotonic() - began, "rows": rows})
        write_text(Path(config.report), markdown(found, shown))
        write_text(Path(config.report).with_suffix(".json"), json.dumps(found, indent=2) + "\n")
    return found


@dataclasses.dataclass(frozen=True)
class Recipes:
    """The runs that are measured, at full or smallest size."""

    smallest: bool
    flags: Sequence[str]
    scratch: Path

    def preset(self, name: str, *more: str, drawn: bool = True) -> Config:
        """A preset with the user's flags, on drawn data or on the user's own."""
        data = ["--dataset=synthetic_pets", f"--data_dir={self.scratch / 'drawn'}", "--encoder_weights=none"]
        tiny = TINY if self.smallest else ()
        flags = ["train.py", f"--preset={name}", *self.flags, *(data if drawn or self.smallest else ()), *tiny]
        return command_line.parse([*flags, "--strategy=one_device", "--quiet", *more], Config)

    def run(self, name: str, *more: str) -> Config:
        """A short run with SGD on drawn data, for comparisons of losses and bits."""
        small = () if self.smallest else ("--image_size=128", "--batch_size=16")
        flags = ["--encoder_alpha=0.35", "--optimizer=sgd", "--learning_rate=0.01", "--notensor_float_32", "--epochs=0",
                 "--virtual_device_memory=2048"]  # fmt: skip
        intervals = ["--summary_every=1", "--steps_per_loop=2", "--eval_every=1000", "--histogram_every=1000"]
        where = f"--workdir={self.scratch / name}"
        return self.preset("tutorial", *small, *flags, *intervals, where, *more)

    @property
    def seconds(self) -> float:
        """How long a speed is measured."""
        return 0.1 if self.smallest else 1.0


def parts(recipes: Recipes) -> list[Part]:
    """The parts in their order: what matters most comes first."""
    devices = Case("devices", (recipes.preset("tutorial"),))
    return [
        Part("Devices", 0.03, lambda seconds: run_cases([devices], seconds)),
        Part("Exactness", 0.25, lambda seconds: exactness(recipes, seconds)),
        Part("Speed of steps", 0.37, lambda seconds: run_cases(speed_cases(recipes), seconds)),
        Part("Beside model.fit and a bare loop", 0.15, lambda seconds: run_cases(beside_cases(recipes), seconds)),
        Part("Input", 0.06, lambda seconds: run_cases(input_cases(recipes), seconds)),
        Part("Time to a score", 1.0, lambda seconds: time_to_scores(recipes, seconds)),
    ]


def run_case(case: Case, seconds: float) -> list[Row]:
    """The rows of a case; the last has `error` if its process failed, or took longer than that."""
    rows: list[Row] = []
    deadline = time.monotonic() + seconds
    with processes.worker(case.function, "gpu_parts:serve", case.function, *case.arguments) as worker:
        try:
            while (found := worker.receive(deadline - time.monotonic())) is not None:
                rows.append({**case.title, **found})
        except PetsegError as error:
            rows.append({**case.title, "error": str(error)})
    return rows


def run_cases(cases: Iterable[Case], seconds: float) -> list[Row]:
    """The rows of several cases, one after the other, as far as the time goes."""
    deadline = time.monotonic() + seconds
    rows: list[Row] = []
    for case in cases:
        left = deadline - time.monotonic()
        rows += run_case(case, left) if left > 0 else [{**case.title, "error": "not begun: no time was left"}]
    return rows


def speed_cases(recipes: Recipes) -> list[Case]:
    """Both recipes in each arithmetic: first at a medium batch without and with XLA, then at others."""
    groups: list[tuple[tuple[int, ...], bool, list[str]]]  # batch sizes, whether XLA is on, arithmetic
    names, every = ["best", "tutorial"], list(ARITHMETIC)
    groups = [((64,), False, every), ((64,), True, every), ((8, 512), False, every)]
    if recipes.smallest:
        names, groups = ["best"], [((4,), False, every), ((4,), True, [WITH_TF32])]
    cases = []
    for batches, xla, kinds in groups:
        for kind, name in itertools.product(kinds, names):
            config = recipes.preset(name, *ARITHMETIC[kind], f"--jit_compile={xla}".lower())
            title = {"recipe": name, "precision": kind, "XLA": "on" if xla else "off"}
            cases.append(Case("speed", (config, batches, recipes.seconds, kind == WITH_TF32), title))
    return cases


def beside_cases(recipes: Recipes) -> list[Case]:
    """Both recipes at their batch size, in float32 and float16."""
    forever = ("--epochs=0", "--train_steps=1000000000", "--eval_every=1000000000", "--checkpoint_every=1000000000")
    cases = []
    for kind in [WITH_TF32] if recipes.smallest else [WITH_TF32, FLOAT16]:
        for name in ["best"] if recipes.smallest else ["best", "tutorial"]:
            workdir = f"--workdir={recipes.scratch / f'beside-{name}-{kind}'}"
            config = recipes.preset(name, *forever, *ARITHMETIC[kind], workdir)
            title = {"recipe": name, "batch": config.data.batch_size, "precision": kind}
            cases.append(Case("beside", (config, recipes.seconds), title))
    return cases


def input_cases(recipes: Recipes) -> list[Case]:
    """The user's data, or what is drawn."""
    own = recipes.preset("tutorial", drawn=False)
    config = own if own.data.data_dir else recipes.preset("tutorial")
    return [Case("input_speed", (config, str(recipes.scratch), recipes.seconds))]


def exactness(recipes: Recipes, seconds: float) -> list[Row]:
    """Runs the checks in parallel: a split device, a killed run, an overflow."""
    checks = (split_in_two, killed_and_resumed, overflow)
    with concurrent.futures.ThreadPoolExecutor(len(checks)) as pool:
        return list(pool.map(lambda check: check(recipes, seconds), checks))


def split_in_two(recipes: Recipes, seconds: float) -> Row:
    """Whether two replicas on a split device train as one does."""
    runs = []
    for name, flag in (("one", "--strategy=one_device"), ("two", "--strategy=mirrored")):
        flags = (flag, "--train_steps=20", *(["--virtual_devices=2"] if name == "two" else []))
        runs.append(Case("trained", (recipes.run(f"split-{name}", *flags),)))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda case: run_case(case, seconds)[-1], runs)
    check = {"check": "the device split in two against one: losses of 20 steps, TF32 off"}
    if error := one.get("error") or two.get("error"):
        return {**check, "error": error}
    losses, others = one["series"]["loss"], two["series"]["loss"]
    worst = max(abs(other / loss - 1) for loss, other in zip(losses, others, strict=True))
    held = worst <= LOSS_BOUND and two["replicas"] == 2 and len(losses) == 20
    return {**check, "found": f"{worst:.1e} relative at most, {two['replicas']} replicas", "held": held}


def killed_and_resumed(recipes: Recipes, seconds: float) -> Row:
    """Whether a run that was killed ends in the same bits, with --deterministic."""
    deadline = time.monotonic() + seconds
    steps = 10 if recipes.smallest else 100
    flags = ("--deterministic", "--ema_decay=0.9", "--augment=standard", f"--train_steps={steps}",
             f"--checkpoint_every={steps // 5}", "--keep_checkpoints=9")  # fmt: skip
    whole, killed = (recipes.run(name, *flags) for name in ("whole", "killed"))
    check = {"check": "kill -9 and resume, same bits with --deterministic"}
    with processes.worker("the run to be killed", "gpu_parts:serve", "trained", killed) as worker:
        checkpoints = WorkDirectory(killed.runtime.workdir).checkpoints
        while not steps_in(checkpoints) and not worker.connection.poll(0.01):
            if time.monotonic() > deadline:
                return {**check, "error": "no checkpoint within the time"}
    begun = max(steps_in(checkpoints), default=0)
    first, second = (run_case(Case("trained", (each,)), deadline - time.monotonic())[-1] for each in (whole, killed))
    if error := first.get("error") or second.get("error"):
        return {**check, "error": error}
    same = first["digest"] == second["digest"]
    found = f"killed after a checkpoint at step {begun} of {steps}, {'the same' if same else 'other'} bits"
    return {**check, "found": found, "held": same and 0 < begun < steps}


def overflow(recipes: Recipes, seconds: float) -> Row:
    """Whether both replicas skip a step that overflows on one."""
    flags = ("--strategy=mirrored", "--virtual_devices=2", "--precision=mixed_float16", "--initial_loss_scale=256",
             "--steps_per_loop=1", "--train_steps=5")  # fmt: skip
    found = run_case(Case("overflow", (recipes.run("overflow", *flags),)), seconds)[-1]
    check = {"check": "float16: an overflow on one of two replicas is skipped by both, the scale halves"}
    if "error" in found:
        return {**check, "error": found["error"]}
    skipped, scales = (found["series"][f"optimization/{name}"] for name in ("skipped_steps", "loss_scale"))
    held = skipped == [0, 0, 1, 1, 1] and scales == [256, 256, 128, 128, 128] and found["replicas"] == 2
    return {**check, "found": f"skipped {skipped}, scale {scales}, {found['replicas']} replicas", "held": held}


def time_to_scores(recipes: Recipes, seconds: float) -> list[Row]:
    """Seconds of training until `best` reaches each target; start-up is included, scoring is not."""
    config = recipes.preset("best", f"--workdir={recipes.scratch / 'time-to'}", drawn=False)
    if not config.data.data_dir:
        raise ConfigError("--data_dir: must name a folder with Oxford-IIIT Pet, with --encoder_weights=FILE beside it")
    targets = (0.05, 0.1) if recipes.smallest else TARGETS
    arguments = (config, targets[-1], 16 if recipes.smallest else 1840, time.monotonic())
    scores = run_case(Case("time_to", arguments), seconds)
    failed = [{"error": score["error"]} for score in scores if "error" in score]
    scores = [score for score in scores if "mean_iou" in score]
    return [time_to(target, scores) for target in targets] + failed


def time_to(target: float, scores: Sequence[Row]) -> Row:
    """The first moment at which a target held at two scores in a row."""
    for number, score in enumerate(scores, 1):
        if time_to_score.holds(scores[:number], target):
            return {"mean IoU": target, "seconds": score["seconds"], "images": score["images"]}
    best = f"{max((score['mean_iou'] for score in scores), default=0.0):.4f}"
    return {"mean IoU": target, "seconds": None, "images": None, "best score": best}


def markdown(found: Sequence[Row], flags: Sequence[str]) -> str:
    """The report: failures, then a table for each part."""
    command = " ".join(["python -m petseg.benchmark --measure=gpu", *flags])
    lines = ["# petseg on this GPU", "", f"`{command}`", "", "## Failures", ""]
    failures = [
        f"- {part['title']}: {', '.join(str(value) for value in each.values())}"
        for part in found
        for each in part["rows"]
        if "error" in each or each.get("held") is False
    ]
    lines += failures or ["none"]
    for part in found:
        lines += ["", f"## {part['title']} ({part['seconds']:.0f} s)", "", *_table(part["rows"])]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row]) -> list[str]:
    titles = dict.fromkeys(key for each in rows for key in each if key != "error")
    good = [row(*(_cell(each.get(title)) for title in titles)) for each in rows if "error" not in each]
    return [*heading(*titles), *good] if good else []


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)
