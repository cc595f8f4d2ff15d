"""Model selection: which weights and which score represent a run."""

from collections.abc import Mapping
from typing import Any

from petseg.config import Config
from petseg.reporting.summaries import EMA, EVAL

SCORE = "mean_iou"  # decides the best checkpoint and early stopping


def selected_weights(config: Config) -> str:
    """The weights whose scores and pictures represent a run: `ema` if averaged weights are kept, else `eval`.

    Averaged weights usually score higher than the last ones.
    """
    return EMA if config.optimizer.keeps_averages else EVAL


def selected_results(config: Config, results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of an evaluation's results that belongs to the selected weights."""
    return results[EMA] if selected_weights(config) == EMA else results
