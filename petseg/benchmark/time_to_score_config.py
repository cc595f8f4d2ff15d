"""Flags of --measure=time_to."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from petseg.config import Config, command_line, presets
from petseg.config.options import Group, option
from petseg.errors import ConfigError

FIT, TUTORIAL = "model.fit", "tutorial"


@dataclasses.dataclass(frozen=True)
class TimeToScoreConfig(Group):
    """Settings of --measure=time_to."""

    target: float = option(0.0, "mean IoU to reach, with --measure=time_to", minimum=0, maximum=1)
    contestants: str = option(
        f"{FIT},fast",
        f"what to train: `{FIT}`, which is Keras's loop with the tutorial's recipe; names of presets; files of flags; "
        "separated by commas",
        required=True,
    )
    score_every: int = option(0, "interval of scores; 0: once an epoch", unit="images", minimum=0)
    fit_steps: int = option(
        0,
        f"steps of {FIT} to measure, from whose speed the time of all its epochs is extrapolated; the target is then "
        "assumed to be reached at their end; 0: train until it is reached",
        unit="steps",
        minimum=0,
    )

    def configs(self, flags: Sequence[str]) -> dict[str, Config]:
        """The training config of each contestant, by its name.

        Args:
          flags: flags for all of them, such as --data_dir; they win over those of presets.

        Raises:
          ConfigError: if a preset does not exist, or a contestant is named twice.
        """
        names = [name.strip() for name in self.contestants.split(",")]
        if len(set(names)) < len(names):
            raise ConfigError(f"--contestants={self.contestants}: each must be named once")
        return {name: self._config(name, flags) for name in names}

    def _config(self, name: str, flags: Sequence[str]) -> Config:
        file = presets.FOLDER / f"{TUTORIAL if name == FIT else name}.cfg"
        file = file if file.is_file() else Path(name)
        if not file.is_file():
            known = ", ".join(presets.names())
            raise ConfigError(f"--contestants={name}: must be {FIT}, a file of flags, or one of the presets {known}")
        return command_line.parse(["train.py", f"--flagfile={file}", *flags], Config)

    def check(self) -> None:
        """Raises ConfigError if there is no target."""
        if not self.target:
            raise ConfigError("--target=0: must be above 0 with --measure=time_to")
