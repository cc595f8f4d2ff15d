"""The start of a program: TensorFlow is imported quickly, and without the lines with which it greets."""

import contextlib
import gc
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

# What TensorFlow's C++ writes before anybody could tell it not to: a letter, the month and the day, or one of these.
GREETING = re.compile(r"[IWE]\d{4} |WARNING: All log messages before absl::InitializeLog|To enable the following instr")
ABOUT_GPUS = re.compile(r"cuda|cudnn|cublas|cufft|cuinit|gpu|nvidia|tensorrt|computation placer", re.IGNORECASE)


def collect_garbage_rarely() -> None:
    """Lets Python look for cycles less often: imports and tracing make millions of objects, and next to no garbage."""
    gc.set_threshold(50_000)  # 700 by default, with which 7% of a short run's time went into looking


@contextlib.contextmanager
def collecting_garbage_rarely() -> Iterator[None]:
    """The same for a while: for calls from a program that is not petseg's own."""
    before = gc.get_threshold()
    collect_garbage_rarely()
    try:
        yield
    finally:
        gc.set_threshold(*before)


def load_tensorflow(*, show_greetings: bool = False) -> None:
    """Imports TensorFlow, lets it look for GPUs, and has it take their memory as it is needed.

    Does not import scikit-learn, as Keras would wherever it is installed: nothing here uses what Keras makes of it, and
    it costs 1.1 s and 57 MiB. It can be imported afterwards as ever.

    Args:
      show_greetings: whether to let through what TensorFlow's C++ writes to stderr meanwhile, such as that there is
        no CUDA; also where the environment's TF_CPP_MIN_LOG_LEVEL is 0.
    """
    collect_garbage_rarely()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # as programs do; read when TensorFlow loads
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0" or "tensorflow" in sys.modules:
        show_greetings = True
    hidden = "sklearn" not in sys.modules
    if hidden:
        sys.modules["sklearn"] = None  # type: ignore[assignment]  # Python's way to say that a module cannot be found
    try:
        with contextlib.nullcontext() if show_greetings else without_greetings():
            import tensorflow as tf

            gpus = tf.config.list_physical_devices("GPU")
    finally:
        if hidden:
            del sys.modules["sklearn"]
    for gpu in gpus:
        # Too late where TensorFlow has run before, or where the GPU was split: then it stays as it is.
        with contextlib.suppress(RuntimeError, ValueError):
            tf.config.experimental.set_memory_growth(gpu, True)


@contextlib.contextmanager
def without_greetings() -> Iterator[None]:
    """Holds back what is written to file descriptor 2, and lets through afterwards what is no greeting.

    TensorFlow's log level does not reach these lines: they are written while its libraries load. If the block fails,
    or the process dies in it (TensorFlow aborts on a CPU that it was not built for), everything is let through.

    If TensorFlow aborts, no Python code of this process runs any more, so another process must show the text: a shell,
    which starts in a millisecond.
    """
    with contextlib.ExitStack() as stack:
        try:
            held_back = stack.enter_context(tempfile.NamedTemporaryFile(prefix="petseg-start-"))
            terminal = os.dup(2)
            stack.callback(os.close, terminal)
            # Its `read` fails if we die before we have written a line.
            witness = subprocess.Popen(
                ["sh", "-c", 'read -r line || cat "$0" >&2', held_back.name], stdin=subprocess.PIPE
            )
        except OSError:  # no place for files, no stderr, no shell: then nothing is held back
            yield
            return
        assert witness.stdin is not None
        sys.stderr.flush()
        os.dup2(held_back.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            with contextlib.suppress(OSError):  # killed by the same Ctrl-C
                witness.stdin.write(b"alive\n")
                witness.stdin.close()
            witness.wait()
            held_back.seek(0)
            text = held_back.read().decode(errors="replace")
            sys.stderr.write(text if failed else worth_showing(text))
            sys.stderr.flush()


def worth_showing(text: str) -> str:
    """What is no greeting, and the errors that are not about GPUs; of those, `strategies` tells what is needed."""
    lines = text.splitlines(keepends=True)
    return "".join(
        line for line in lines if not GREETING.match(line) or (line.startswith("E") and not ABOUT_GPUS.search(line))
    )
