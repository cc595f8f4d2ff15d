"""Flags that name user code and replace nothing built in."""

import dataclasses

from petseg.config.options import SCORING, TRAINING, Group, option


@dataclasses.dataclass(frozen=True)
class ExtensionConfig(Group):
    """User code: pixel weights, training step, scores, hooks."""

    weight_map: str = option(
        "", "factor of the pixel weights: `FILE.py:function`, masks [B, H, W, 1] -> float32 [B, H, W]", code=SCORING
    )
    step: str = option(
        "",
        "custom trainer: `FILE.py:Class`, a subclass of `petseg.training.trainer.Trainer` that overrides `forward`",
        resume="fixed",
        code=TRAINING,
    )
    scores: str = option(
        "", "further scores: `FILE.py:function`, (confusion matrix, classes[, images]) -> numbers by name", code=SCORING
    )
    after_evaluation: str = option(
        "", "`FILE.py:function`, called with (step, scores, work directory) after each evaluation", code=TRAINING
    )
    every_summary: str = option(
        "", "`FILE.py:function`, called with (step, scalars, work directory) every --summary_every steps", code=TRAINING
    )
