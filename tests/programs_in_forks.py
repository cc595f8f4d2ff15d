"""Programs in processes forked from one that has loaded TensorFlow, which start in a third of the time.

They cannot test the start-up itself; `conftest.run_program` starts a program normally.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Program:
    """An entry script in a forked process, with the part of the interface of `subprocess.Popen` that tests use."""

    def __init__(self, script, *arguments, env=None):
        self._folder = Path(tempfile.mkdtemp(prefix="program-"))
        self.args = [script, *map(str, arguments)]
        self._process = _context().Process(target=_run, args=(self.args, env, self._folder))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode

    def communicate(self, timeout=None):
        """Waits for the program to end; returns what it wrote to stdout and stderr."""
        self.wait(timeout)
        return tuple((self._folder / name).read_text() for name in ("stdout", "stderr"))

    def stderr_so_far(self):
        file = self._folder / "stderr"
        return file.read_text(errors="replace") if file.exists() else ""

    def send_signal(self, number):
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self):
        self._process.kill()


def run(script, *arguments, env=None, timeout=300):
    """Runs a program to its end, like `subprocess.run`."""
    program = Program(script, *arguments, env=env)
    stdout, stderr = program.communicate(timeout)
    return subprocess.CompletedProcess(program.args, program.returncode, stdout, stderr)


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    os.environ["PYTHONPATH"] = os.pathsep.join(
        dict.fromkeys([str(ROOT / "tests"), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    )
    return context


def _run(argv, env, folder):
    """Runs the program in the forked process."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    os.environ.update(env or {})
    os.chdir(ROOT)
    sys.argv = argv
    try:
        runpy.run_path(str(ROOT / argv[0]), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else bool(end.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
