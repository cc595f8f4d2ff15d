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

import white_figures

from petseg.reporting import pictures

ROOT = Path(__file__).parent.parent


class Program:
    """An entry script, the module after `-m`, or the code after `-c`, in a forked process.

    Its interface is that of `subprocess.Popen`.

    Its figures stay white unless it `draws`, as in `conftest`.
    """

    def __init__(self, *command, env=None, draws=False):
        self._folder = Path(tempfile.mkdtemp(prefix="program-"))
        for name in ("stdout", "stderr"):  # here, because the process may be killed before it opens them
            (self._folder / name).touch()
        self.args = [str(part) for part in command]
        self._process = _context().Process(target=_run, args=(self.args, env, self._folder, draws))
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
        return (self._folder / "stderr").read_text(errors="replace")

    def send_signal(self, number):
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self):
        self._process.kill()


def run(*command, env=None, timeout=300):
    """Runs a program to its end, like `subprocess.run`."""
    program = Program(*command, env=env)
    stdout, stderr = program.communicate(timeout)
    return subprocess.CompletedProcess(program.args, program.returncode, stdout, stderr)


def exit_code(function, *arguments):
    """Calls a function of a test module in a forked process; returns the exit code of that process."""
    process = _context().Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    os.environ["PYTHONPATH"] = os.pathsep.join(
        dict.fromkeys([str(ROOT / "tests"), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    )
    return context


def _run(command, env, folder, draws):
    """Runs the program in the forked process."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    os.environ.update(env or {})
    if not draws:
        pictures.to_array = white_figures.to_array
    os.chdir(ROOT)
    module, sys.argv = command[0] == "-m", command[command[0] == "-m" :]
    try:
        if command[0] == "-c":
            sys.argv = ["-c", *command[2:]]
            exec(compile(command[1], "<code>", "exec"), {"__name__": "__main__"})
        elif module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else bool(end.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
