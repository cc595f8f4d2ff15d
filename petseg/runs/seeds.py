"""Trains a recipe with several seeds: python -m petseg.runs.seeds --workdir=DIR --seeds=0,1,2 [any flag of train.py].

The runs, DIR/seed-0 and so on, are trained one after the other, each in its own process; then a table shows their
scores with mean and spread. After a stop or kill, the same command resumes.
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
from collections.abc import Iterator
from pathlib import Path

from petseg.config import Config, command_line, options
from petseg.config.options import Group, option
from petseg.errors import ConfigError, PetsegError
from petseg.runs import run_groups
from petseg.runtime import startup
from petseg.runtime.signals import SIGNALS

logger = logging.getLogger("petseg.runs.seeds")


@dataclasses.dataclass(frozen=True)
class SeedsGroup(Group):
    """The seeds."""

    seeds: str = option("0,1,2", "seeds of the runs, separated by commas", required=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.numbers()

    def numbers(self) -> tuple[int, ...]:
        """The seeds, as numbers."""
        parts = [part.strip() for part in self.seeds.split(",")]
        numbers = tuple(int(part) for part in parts if re.fullmatch(r"\d{1,10}", part))
        if len(numbers) < len(parts) or len(set(numbers)) < len(parts):
            raise ConfigError(f"--seeds={self.seeds}: must be different whole numbers, separated by commas")
        return numbers


@dataclasses.dataclass(frozen=True)
class SeedsConfig(Config):
    """A training config and the seeds with which to repeat it."""

    runs: SeedsGroup = SeedsGroup()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.runtime.seed:
            raise ConfigError(f"--seed={self.runtime.seed}: must not be given; the seeds are those of --seeds")
        if not self.runtime.workdir:
            raise ConfigError("--workdir: must be the folder of the runs' work directories")

    def for_seed(self, seed: int) -> Config:
        """The config of the run with a seed."""
        plain = Config(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Config)})
        workdir = run_groups.seed_folder(Path(self.runtime.workdir), seed)
        return plain.changed(runtime={"seed": seed, "workdir": str(workdir)})


def main(config: SeedsConfig) -> None:
    """Trains with one seed after the other, then prints their scores."""
    if (Path(config.runtime.workdir) / "config.json").exists():
        raise ConfigError(f"--workdir={config.runtime.workdir}: is itself a run; must be a folder for those of --seeds")
    configs = [config.for_seed(seed) for seed in config.runs.numbers()]
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
    """Prints the scores of each run's last evaluation, with mean and spread."""
    startup.load_tensorflow()
    from petseg.evaluation import score_tables
    from petseg.runs import group_scoring

    results = {config.runtime.workdir: group_scoring.last_results(config) for config in configs}
    weights = "averaged" if configs[0].optimizer.ema_decay else "trained"
    print(f"\n{score_tables.runs_table(results)}\n\n{weights} weights, each run's last evaluation")
    folder = Path(configs[0].runtime.workdir).parent
    ema = " --ema" if configs[0].optimizer.ema_decay else ""
    print(f"\nscore them:     {command_line.invocation('eval.py')} --workdir={folder}{ema} [--compare=ANOTHER_FOLDER]")
    print(f"watch them:     tensorboard --logdir={folder}")


if __name__ == "__main__":
    command_line.run(main, SeedsConfig, __doc__)
