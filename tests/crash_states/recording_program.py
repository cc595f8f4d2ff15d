"""The program into which the recorder is preloaded: records tiny runs, or makes them on a full disk."""

import functools
import json
import pickle
import sys
from pathlib import Path
from unittest import mock

import tiny_run
from recorder import Recorder, Recording, contents, inodes, put
from short_trainings import built_once
from states import CrashStates

from petseg.errors import PetsegError
from petseg.runs import evaluations, train
from petseg.runs.checkpoints import BestCheckpoint, Checkpoints


def record(folder: Path, *flags: str) -> Recording:
    """Records a run, with marks of what is saved: `checkpoints 4`, `best 3` (its files), `record 3`, `results 3`."""
    root, log = folder / "root", folder / "log"
    recorder = Recorder(root)

    def marking(owner, name, what=None):
        function = getattr(owner, name)

        @functools.wraps(function)
        def marked(self, *arguments):
            found = function(self, *arguments)
            step = next(each for each in arguments if isinstance(each, int))
            recorder.mark(f"{what or self._directory.name} {step}")
            return found

        return mock.patch.object(owner, name, marked)

    before, numbers = contents(root), inodes(root)
    with (
        marking(Checkpoints, "_commit"),
        marking(BestCheckpoint, "_record", "record"),
        marking(evaluations, "evaluate", "results"),
    ):
        recorder.start(log)
        train.train(tiny_run.config(folder / "inputs", root, *flags))
        recorder.stop()
    found = Recording.read(log, root, before, numbers)
    log.unlink()
    return found


def record_runs(folder: Path) -> None:
    """Records a run from its start, and one that goes on after a power cut between the files of a checkpoint."""
    first = record(folder)
    between = first.index_of("run/checkpoints/ckpt-4.data-00000-of-00001")
    put(CrashStates(first).after(between), folder / "root", first.times)
    second = record(folder, "--sync_checkpoints")
    (folder / "recordings").write_bytes(pickle.dumps([first, second]))


def fill_disk(folder: Path, share: int) -> None:
    """Makes runs on a disk that is full after each n-th write, n = 0, `share`, ..., and resumes them with free space.

    Writes how each ended, and what then differs from an undisturbed run, to `folder / "full-disk"`.
    """
    root, found = folder / "root", []
    put({}, root, {})
    config, recorder = tiny_run.config(folder / "inputs", root, "--train_steps=3"), Recorder(root)
    train.train(config)
    expected = tiny_run.outcome(root / "run")
    end = ""
    while end != "no write failed":
        put({}, root, {})
        recorder.fill_disk(len(found) * share)
        try:
            train.train(config)
            end = "finished" if recorder.is_full() else "no write failed"
        except PetsegError as error:
            end = f"{error.exit_code} {error}"
        except Exception as error:
            end = f"1 {type(error).__name__}: {error}"
        recorder.fill_disk(-1)
        train.train(config)
        now = tiny_run.outcome(root / "run")
        found.append([end, [what for what in expected if now[what] != expected[what]]])
    (folder / "full-disk").write_text(json.dumps(found))


if __name__ == "__main__":
    where = Path(sys.argv[1])
    with built_once(where / "built"):
        if not (where / "recordings").exists():
            record_runs(where)
        fill_disk(where, int(sys.argv[2]))
