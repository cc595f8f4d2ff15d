"""Quick and quiet import of TensorFlow: without scikit-learn, and without its start-up messages."""

import contextlib
import gc
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

# Messages of TensorFlow's C++ code before its log level applies: a letter, month and day, or one of these texts.
GREETING = re.compile(r"[IWE]\d{4} |WARNING: All log messages before absl::InitializeLog|To enable the following instr")
ABOUT_GPUS = re.compile(r"cuda|cudnn|cublas|cufft|cuinit|gpu|nvidia|tensorrt|computation placer", re.IGNORECASE)


def collect_garbage_rarely() -> None:
    """Makes Python collect cycles less often: imports and tracing create millions of objects and little garbage."""
    gc.set_threshold(50_000)  # 700 by default, which took 7% of a short run's time


@contextlib.contextmanager
def collecting_garbage_rarely() -> Iterator[None]:
    """The same inside the block only, for calls from a user's program."""
    before = gc.get_threshold()
    collect_garbage_rarely()
    try:
        yield
    finally:
        gc.set_threshold(*before)


def load_tensorflow(*, show_greetings: bool = False, find_gpus: bool = True) -> None:
    """Imports TensorFlow, finds the GPUs, and switches memory growth on.

    Keeps Keras from importing scikit-learn, whose wrappers petseg does not use: saves 1.1 s and 57 MiB. It can be
    imported afterwards as usual.

    Args:
      show_greetings: whether to show what TensorFlow's C++ code writes to stderr during the import, such as missing
        CUDA libraries; TF_CPP_MIN_LOG_LEVEL=0 shows it too.
      find_gpus: False in a process that others are forked from, because CUDA cannot be used after a fork.
    """
    collect_garbage_rarely()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow loads
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0" or "tensorflow" in sys.modules:
        show_greetings = True
    hidden = "sklearn" not in sys.modules
    if hidden:
        sys.modules["sklearn"] = None  # type: ignore[assignment]  # makes an import raise ImportError
    try:
        with contextlib.nullcontext() if show_greetings else without_greetings():
            import tensorflow as tf

            gpus = tf.config.list_physical_devices("GPU") if find_gpus else []
    finally:
        if hidden:
            del sys.modules["sklearn"]
    for gpu in gpus:
        # Too late if TensorFlow already uses the GPU, or if the GPU is split.
        with contextlib.suppress(RuntimeError, ValueError):
            tf.config.experimental.set_memory_growth(gpu, True)


@contextlib.contextmanager
def without_greetings() -> Iterator[None]:
    """Buffers what is written to file descriptor 2, and shows it afterwards without TensorFlow's start-up messages.

    The log level does not apply to them, since they are written while libraries load. If the block fails, everything is
    shown; also if TensorFlow aborts (on a CPU that it was not built for): then no Python code of this process runs, so
    a shell, which starts in a millisecond, shows the text.
    """
    with contextlib.ExitStack() as stack:
        try:
            buffer = stack.enter_context(tempfile.NamedTemporaryFile(prefix="petseg-start-"))
            terminal = os.dup(2)
            stack.callback(os.close, terminal)
            # Its `read` fails if this process dies before it has written a line.
            watchdog = subprocess.Popen(
                ["sh", "-c", 'read -r line || cat "$0" >&2', buffer.name], stdin=subprocess.PIPE
            )
        except OSError:  # no temporary file, stderr or shell: nothing is buffered
            yield
            return
        assert watchdog.stdin is not None
        sys.stderr.flush()
        os.dup2(buffer.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            with contextlib.suppress(OSError):  # killed by the same Ctrl-C
                watchdog.stdin.write(b"alive\n")
                watchdog.stdin.close()
            watchdog.wait()
            buffer.seek(0)
            text = buffer.read().decode(errors="replace")
            sys.stderr.write(text if failed else worth_showing(text))
            sys.stderr.flush()


def worth_showing(text: str) -> str:
    """Removes start-up messages from a text, except errors that do not concern GPUs (`gpu_diagnosis` reports those)."""
    lines = text.splitlines(keepends=True)
    return "".join(
        line for line in lines if not GREETING.match(line) or (line.startswith("E") and not ABOUT_GPUS.search(line))
    )
