"""Groups of runs that differ only in seed or fold: their folders, and flags that name several runs. No TensorFlow."""

import glob
import logging
from collections.abc import Sequence
from pathlib import Path

from petseg import config as config_lib
from petseg.config import Config, folds
from petseg.config.eval_config import ScoreConfig
from petseg.errors import ConfigError
from petseg.runs.work_directory import WorkDirectory

logger = logging.getLogger(__name__)
SEED, FOLD = "seed-", "fold-"  # begin the names of work directories
MAY_DIFFER = ("workdir", "seed", "data_dir", "cache", "cache_dir", "data_service", "quiet", "example_order")


def seed_folder(folder: Path, seed: int) -> Path:
    return folder / f"{SEED}{seed}"


def fold_folder(folder: Path, number: int) -> Path:
    return folder / f"{FOLD}{number}"


def group_folder(config: Config) -> Path | None:
    """Folder of the group to which a run belongs; None for a single run."""
    workdir, fold = Path(config.runtime.workdir), folds.parse(config.data.eval_split)
    names = [seed_folder(Path(), config.runtime.seed).name, *([fold_folder(Path(), fold.number).name] if fold else [])]
    return workdir.parent if workdir.name in names else None


def find_runs(text: str, flag: str) -> list[WorkDirectory]:
    """The work directories that a flag names: paths separated by commas, globs, or folders that hold work directories.

    Raises ConfigError if a glob matches no run, or a run is named twice.
    """
    found: list[Path] = []
    for part in filter(None, map(str.strip, text.split(","))):
        if Path(part).exists() or not glob.has_magic(part):
            found += _in_folder(Path(part)) or [Path(part)]
        else:
            runs = [run for path in sorted(glob.glob(part)) for run in _in_folder(Path(path))]
            if not runs:
                raise ConfigError(f"--{flag}={part}: matches no run; must name work directories")
            found += runs
    if text and not found:
        found = [Path(text)]
    resolved = [path.resolve() for path in found]
    twice = [path for path in found if resolved.count(path.resolve()) > 1]
    if twice:
        raise ConfigError(f"--{flag}={text}: each run must be named once; got {twice[0]} twice")
    return [WorkDirectory(path) for path in found]


def find_single_run(text: str, flag: str) -> WorkDirectory:
    """The work directory that a flag names; raises ConfigError if it names several."""
    found = find_runs(text, flag)
    if len(found) > 1:
        raise ConfigError(f"--{flag}={text}: must be one run; holds {len(found)}")
    return found[0]


def warn_of_different_recipes(workdirs: Sequence[WorkDirectory]) -> None:
    """Warns if runs that are scored together differ in more than the seed."""
    configs = [workdir.load_config() for workdir in workdirs]
    for workdir, config in zip(workdirs[1:], configs[1:], strict=True):
        may_differ = (*MAY_DIFFER, *(("train_split", "eval_split") if folds.parse(config.data.eval_split) else ()))
        changes = config_lib.changes(configs[0], config)
        names = [f"--{name}" for name in changes if name not in may_differ]
        if names:
            logger.warning("%s differs from %s in %s", workdir.path, workdirs[0].path, ", ".join(names))


def _in_folder(path: Path) -> list[Path]:
    """The folder itself if it is a work directory, else the work directories in it, sorted by seed."""
    if (path / "config.json").is_file():
        return [path]
    inside = [file.parent for file in path.glob("*/config.json")] if path.is_dir() else []
    return sorted(inside, key=_sort_key)


def _sort_key(path: Path) -> tuple[int, str]:
    """Sorts seeds and folds by number, then other names."""
    number = path.name.removeprefix(SEED).removeprefix(FOLD)
    return (int(number), "") if number.isdecimal() else (2**32, path.name)


def names_several_runs(score: ScoreConfig) -> bool:
    """Whether --workdir or --compare names several runs.

    Raises ConfigError if they do beside flags that need a single run, or a run is named twice.
    """
    flags = ("compare",) if score.ensemble else ("workdir", "compare")
    counts = {flag: len(find_runs(getattr(score, flag), flag)) for flag in flags}
    if max(counts.values()) < 2:
        return False
    flag = max(counts, key=lambda name: counts[name])
    if score.checkpoint not in ("latest", "best") or score.watch or score.predict or score.export or score.ensemble:
        raise ConfigError(
            f"--{flag}={getattr(score, flag)}: holds {counts[flag]} runs; must be one with --watch, --predict, "
            "--export, --checkpoint=all or the path of a checkpoint; --ensemble uses those of --workdir as one model"
        )
    return True
