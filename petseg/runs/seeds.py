"""Trains a recipe with several seeds: python -m petseg.runs.seeds --workdir=DIR --seeds=0,1,2 [any flag of train.py].

The runs, DIR/seed-0 and so on, follow each other, each in a process of its own; then a table says what they have in
common, and how far they lie apart. Stopped or killed at any moment, the same command goes on.
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

from petseg.config import Config, command_line
from petseg.config.options import Group, groups, option
from petseg.errors import ConfigError, PetsegError
from petseg.runs import run_groups
from petseg.runtime import startup
from petseg.runtime.signals import SIGNALS

logger = logging.getLogger("petseg.runs.seeds")


@dataclasses.dataclass(frozen=True)
class SeedsGroup(Group):
    """Which runs there are."""

    seeds: str = option("0,1,2", "seeds of the runs, separated by commas", required=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.numbers()

    def numbers(self) -> tuple[int, ...]:
        """The seeds."""
        parts = [part.strip() for part in self.seeds.split(",")]
        numbers = tuple(int(part) for part in parts if re.fullmatch(r"\d{1,10}", part))
        if len(numbers) < len(parts) or len(set(numbers)) < len(parts):
            raise ConfigError(f"--seeds={self.seeds}: must be whole numbers, each another, separated by commas")
        return numbers


@dataclasses.dataclass(frozen=True)
class SeedsConfig(Config):
    """A training run, and the seeds with which it is repeated."""

    runs: SeedsGroup = SeedsGroup()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.runtime.seed:
            raise ConfigError(f"--seed={self.runtime.seed}: must not be given; the seeds are those of --seeds")
        if not self.runtime.workdir:
            raise ConfigError("--workdir: must be the folder of the runs' work directories")

    def of_seed(self, seed: int) -> Config:
        """The config of one run."""
        plain = Config(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Config)})
        workdir = run_groups.seed_folder(Path(self.runtime.workdir), seed)
        return plain.changed(runtime={"seed": seed, "workdir": str(workdir)})


def main(config: SeedsConfig) -> None:
    """Trains with one seed after the other, and prints what the runs say together."""
    if (Path(config.runtime.workdir) / "config.json").exists():
        raise ConfigError(f"--workdir={config.runtime.workdir}: is itself a run; must be a folder for those of --seeds")
    configs = [config.of_seed(seed) for seed in config.runs.numbers()]
    for number, each in enumerate(configs, 1):
        logger.info("run %d of %d: %s", number, len(configs), each.runtime.workdir)
        train_in_a_process(each)
    _tell(configs)


def train_in_a_process(config: Config) -> None:
    """Does what `train.py` does, in a process of its own, which ends with this one.

    A process for each run, for seeds, determinism and devices belong to a process, and its memory goes with it.

    Raises:
      PetsegError: if the process was killed.
      SystemExit: if it ended otherwise than well; it has said why.
    """
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(flags_of(config),))
    process.start()
    with _signals_sent_to(process):
        process.join()
    code = process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name
        raise PetsegError(f"{config.runtime.workdir}: its process was ended by {name}; the same command goes on")
    if code:
        sys.exit(code)


def flags_of(config: Config) -> list[str]:
    """The command line that makes a config: the flags that have other values than their defaults."""
    flags = []
    for name, group in groups(Config).items():
        for field in dataclasses.fields(group):
            value = getattr(getattr(config, name), field.name)
            if value != field.default:
                flags.append(f"--{field.name}={str(value).lower() if isinstance(value, bool) else value}")
    return flags


def _train(flags: list[str]) -> None:
    """In the process of a run: becomes `petseg-train`."""
    os.setpgid(0, 0)  # Ctrl-C goes to all processes of a terminal's group; this one is sent it once, by its parent
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    sys.argv = ["petseg-train", *flags]
    command_line.run(_train_one, Config, "")


def _train_one(config: Config) -> None:
    startup.load_tensorflow(show_greetings=config.runtime.debug)
    from petseg.runs import train

    train.train(config)


def _end_with_the_parent() -> None:
    """What remains is what a kill leaves, and who goes on need not wait for this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _signals_sent_to(process: multiprocessing.process.BaseProcess) -> Iterator[None]:
    """Hands the signals that stop a program on to a process, which has something to save."""

    def send(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid or 0, number)

    before = {number: signal.signal(number, send) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(configs: list[Config]) -> None:
    """Prints the scores of the runs' last evaluations, with mean and spread."""
    startup.load_tensorflow()
    from petseg.evaluation import score_tables
    from petseg.runs import group_scoring

    results = {config.runtime.workdir: group_scoring.last_results(config) for config in configs}
    weights = "averaged" if configs[0].optimizer.ema_decay else "trained"
    print(f"\n{score_tables.runs_table(results)}\n\n{weights} weights, as of each run's last evaluation")
    folder = Path(configs[0].runtime.workdir).parent
    ema = " --ema" if configs[0].optimizer.ema_decay else ""
    print(f"\nscore them:     {command_line.invocation('eval.py')} --workdir={folder}{ema} [--compare=ANOTHER_FOLDER]")
    print(f"watch them:     tensorboard --logdir={folder}")


if __name__ == "__main__":
    command_line.run(main, SeedsConfig, __doc__)
