"""What makes the start of a program shorter."""

import gc
import sys


def collect_garbage_rarely() -> None:
    """Lets Python look for cycles less often: imports and tracing make millions of objects, and next to no garbage."""
    gc.set_threshold(50_000)  # 700 by default, with which 7% of a short run's time went into looking


def load_tensorflow() -> None:
    """Imports TensorFlow, but not scikit-learn, which Keras would import wherever it is installed.

    Nothing here uses what Keras makes of it, and it takes 1.1 s and 57 MiB. It can be imported afterwards as ever.
    """
    hidden = "sklearn" not in sys.modules
    if hidden:
        sys.modules["sklearn"] = None  # type: ignore[assignment]  # Python's way to say that a module cannot be found
    try:
        import tensorflow  # noqa: F401
    finally:
        if hidden:
            del sys.modules["sklearn"]
