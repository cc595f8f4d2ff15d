"""Semantic segmentation in TensorFlow with a custom training loop.

    config = petseg.Config.preset("quickstart", epochs=2)  # or petseg.Config.of(dataset="folder", data_dir="mine")
    run = petseg.train(config)
    petseg.load(run.workdir)("cat.jpg").overlay()

TensorFlow is imported with the first attribute that needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petseg.config import Config
    from petseg.deployment.segmentation import Segmentation
    from petseg.deployment.segmenter import Segmenter, load
    from petseg.runs.from_python import Run, train

__version__ = "0.1.0"
__all__ = ["Config", "Run", "Segmentation", "Segmenter", "load", "train"]

_MODULES = {
    "Config": "petseg.config",
    "Run": "petseg.runs.from_python",
    "Segmentation": "petseg.deployment.segmentation",
    "Segmenter": "petseg.deployment.segmenter",
    "load": "petseg.deployment.segmenter",
    "train": "petseg.runs.from_python",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name != "Config":
        from petseg.runtime import startup

        with startup.collecting_garbage_rarely():
            startup.load_tensorflow()
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
