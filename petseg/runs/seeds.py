"""Trains a recipe with several seeds: python -m petseg.runs.seeds --workdir=DIR --seeds=0,1,2 [any flag of train.py].

The runs, DIR/seed-0 and so on, are trained one after the other, each in its own process; then a table shows their
scores with mean and spread. After a stop or kill, the same command resumes. With --folds=5 the runs are those of a
cross-validation, DIR/fold-1 and so on: each is trained on --train_split without a fold, and scored on this fold.
"""

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from petseg.config import Config, DataConfig, command_line, folds, options
from petseg.config.folds import Fold
from petseg.config.options import Group, option
from petseg.errors import ConfigError, PetsegError
from petseg.files import read_json
from petseg.runs import run_groups
from petseg.runs.work_directory import WorkDirectory
from petseg.runtime import startup
from petseg.runtime.signals import SIGNALS

logger = logging.getLogger("petseg.runs.seeds")


@dataclasses.dataclass(frozen=True)
class SeedsGroup(Group):
    """The seeds, or the folds."""

    seeds: str = option("0,1,2", "seeds of the runs, separated by commas", required=True)
    folds: int = option(
        0,
        "number of folds of --train_split for cross-validation with one seed, --seed; --group_files keeps examples "
        "together; 0: none",
        minimum=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.numbers()
        if self.folds == 1:
            raise ConfigError("--folds=1: must be at least 2, or 0 for no cross-validation")
        if self.folds and self.seeds != SeedsGroup.seeds:
            raise ConfigError(
                f"--seeds={self.seeds} and --folds={self.folds}: must not both be given; --seed is for folds"
            )

    def numbers(self) -> tuple[int, ...]:
        """The seeds, as numbers."""
        parts = [part.strip() for part in self.seeds.split(",")]
        numbers = tuple(int(part) for part in parts if re.fullmatch(r"\d{1,10}", part))
        if len(numbers) < len(parts) or len(set(numbers)) < len(parts):
            raise ConfigError(f"--seeds={self.seeds}: must be different whole numbers, separated by commas")
        return numbers


@dataclasses.dataclass(frozen=True)
class SeedsConfig(Config):
    """A training config and the seeds or folds with which to repeat it."""

    runs: SeedsGroup = SeedsGroup()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.runs.folds:
            self._check_folds()
        elif self.runtime.seed:
            raise ConfigError(f"--seed={self.runtime.seed}: must not be given; the seeds are those of --seeds")
        if not self.runtime.workdir:
            raise ConfigError("--workdir: must be the folder of the runs' work directories")

    def _check_folds(self) -> None:
        """Raises ConfigError if a flag contradicts --folds."""
        flag = f"--folds={self.runs.folds}"
        if folds.parse(self.data.train_split):
            raise ConfigError(f"{flag} and --train_split={self.data.train_split}: must not be a fold itself")
        if self.schedule.eval_examples:
            raise ConfigError(
                f"--eval_examples={self.schedule.eval_examples}: must be 0 with {flag}, so that each example is scored"
            )

    def check_arguments(self, arguments: Sequence[str]) -> None:
        """Raises ConfigError if --folds and --eval_split are both given; folds replace that of a preset."""
        if self.runs.folds and options.last_given("eval_split", arguments) >= 0:
            raise ConfigError(
                f"--folds={self.runs.folds} and --eval_split={self.data.eval_split}: must not both be given, since "
                "each run is scored on the fold that it leaves out"
            )

    def configs(self) -> list[Config]:
        """The configs of all runs."""
        plain = Config(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Config)})
        folder, split, count = Path(self.runtime.workdir), self.data.train_split, self.runs.folds
        if not count:
            return [
                plain.changed(runtime={"seed": seed, "workdir": str(run_groups.seed_folder(folder, seed))})
                for seed in self.runs.numbers()
            ]
        return [
            plain.changed(
                data={
                    "train_split": str(Fold(split, number, count, without=True)),
                    "eval_split": str(Fold(split, number, count)),
                },
                runtime={"workdir": str(run_groups.fold_folder(folder, number))},
            )
            for number in range(1, count + 1)
        ]


def main(config: SeedsConfig) -> None:
    """Trains with one seed, or on one fold, after the other, then prints their scores."""
    if (Path(config.runtime.workdir) / "config.json").exists():
        raise ConfigError(
            f"--workdir={config.runtime.workdir}: is itself a run; must be a folder for those of --seeds or --folds"
        )
    if config.runs.folds and config.data.eval_split != DataConfig.eval_split:
        logger.info("--eval_split=%s is not used: each run is scored on its fold", config.data.eval_split)
    configs = config.configs()
    for number, each in enumerate(configs, 1):
        logger.info("run %d of %d: %s", number, len(configs), each.runtime.workdir)
        train_in_a_process(each)
    _print_scores(configs)


def train_in_a_process(config: Config) -> None:
    """Runs `train.py` in a child process, which ends with this one.

    Each run has its own process because seeds, determinism and devices are settings of a process.

    Raises:
      PetsegError: if the process was killed.
      SystemExit: if the process failed; it has printed the reason.
    """
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(flags_of(config),))
    process.start()
    with _signals_sent_to(process):
        process.join()
    code = process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name
        raise PetsegError(f"{config.runtime.workdir}: its process was ended by {name}; rerun to resume")
    if code:
        sys.exit(code)


def flags_of(config: Config) -> list[str]:
    """The flags of a config that differ from their defaults, as command-line arguments."""
    values = {
        field.name: getattr(getattr(config, name), field.name)
        for name, group in options.groups(Config).items()
        for field in dataclasses.fields(group)
        if getattr(getattr(config, name), field.name) != field.default
    }
    return options.as_arguments(values)


def _train(flags: list[str]) -> None:
    """Entry of the child process: becomes `petseg-train`."""
    os.setpgid(0, 0)  # out of the terminal's group: it gets Ctrl-C once, from its parent
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    sys.argv = ["petseg-train", *flags]
    command_line.run(_train_one, Config, "")


def _train_one(config: Config) -> None:
    startup.load_tensorflow(show_greetings=config.runtime.debug)
    from petseg.runs import train

    train.train(config)


def _end_with_the_parent() -> None:
    """Kills this process when its parent ends, so that a rerun need not wait for it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _signals_sent_to(process: multiprocessing.process.BaseProcess) -> Iterator[None]:
    """Forwards stop signals to a process, which then saves and ends."""

    def send(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid or 0, number)

    before = {number: signal.signal(number, send) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_scores(configs: list[Config]) -> None:
    """Prints the scores of each run's last evaluation, with mean and spread; of folds, the pooled score too."""
    startup.load_tensorflow()
    from petseg.evaluation import score_tables
    from petseg.runs import cross_validation, group_scoring

    results = {config.runtime.workdir: read_json(group_scoring.last_results_file(config)) for config in configs}
    first = configs[0]
    weights, ema = ("averaged", " --ema") if first.optimizer.keeps_averages else ("trained", "")
    print()
    if folds.parse(first.data.eval_split):
        classes = WorkDirectory(first.runtime.workdir).load_classes()
        found = cross_validation.summary(results, first, classes)
        cross_validation.print_and_write(found, group_scoring.last_results_file(first))
    else:
        print(f"{score_tables.runs_table(results)}\n")
    print(f"{weights} weights, each run's last evaluation")
    folder = Path(first.runtime.workdir).parent
    print(f"\nscore them:     {command_line.invocation('eval.py')} --workdir={folder}{ema} [--compare=ANOTHER_FOLDER]")
    print(f"watch them:     tensorboard --logdir={folder}")


if __name__ == "__main__":
    command_line.run(main, SeedsConfig, __doc__)
