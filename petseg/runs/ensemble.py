"""Several trained runs as one model, which averages their class probabilities."""

import dataclasses
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from petseg.classes import Classes
from petseg.config import Config
from petseg.errors import ConfigError
from petseg.runs.packed_run import PackedRun
from petseg.runs.trained_run import TrainedRun

if TYPE_CHECKING:
    import keras

    from petseg.models.inference import ProbabilityAverage

SEPARATOR = ", "  # between the checkpoints of the members
CHECKPOINTS = ("latest", "best")


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Trained runs of the same classes and input, used like one run. The loss of scores is that of the first.

    Raises ConfigError if there are fewer than two, a path contains SEPARATOR, or they do not fit together.
    """

    members: tuple[TrainedRun | PackedRun, ...]  # the runs

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            names = ", ".join(member.name for member in self.members) or "none"
            raise ConfigError(f"--ensemble: must have at least two runs; got {names}")
        for member in self.members:
            if SEPARATOR in member.name:
                raise ConfigError(f"--ensemble: {member.name}: its path must not contain {SEPARATOR!r}; rename it")
        first = _requirements(self.members[0])
        for member in self.members[1:]:
            for what, value in _requirements(member).items():
                if value != first[what]:
                    raise ConfigError(
                        f"--ensemble: the runs must have the same {what}; {self.members[0].name} has {first[what]}, "
                        f"{member.name} has {value}"
                    )

    @property
    def name(self) -> str:
        return f"ensemble of {len(self.members)}"

    @property
    def config(self) -> Config:
        """The config of the first run."""
        return self.members[0].config

    @property
    def classes(self) -> Classes:
        return self.members[0].classes

    @property
    def weights(self) -> str:
        return " and ".join(sorted({member.weights for member in self.members}))

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        return self.members[0].class_weights

    @property
    def figures(self) -> Path | None:
        return self.members[0].figures

    def results_file(self, split: str, step: int, *differences: str) -> Path | None:
        """Path of the results file, in the first run; its name has a checksum of the members' names."""
        members = zlib.crc32("\n".join(sorted(member.name for member in self.members)).encode())
        ensemble = f"ensemble{len(self.members)}-{members:08x}"
        return self.members[0].results_file(split, step, ensemble, *differences)

    def checkpoint(self, which: str, *, intact: bool = True) -> str:
        """The checkpoint of each run that --checkpoint names, `latest` or `best`, as one text.

        Raises ConfigError if it names another one, and CheckpointError if a run has none.
        """
        if which not in CHECKPOINTS:
            raise ConfigError(f"--checkpoint={which}: must be one of {', '.join(CHECKPOINTS)} for several runs")
        return SEPARATOR.join(member.checkpoint(which, intact=intact) for member in self.members)

    def build_model(self) -> "ProbabilityAverage":
        """Builds the networks, for `restore`; call it inside ``strategy.scope()`` if there is one."""
        from petseg.models.inference import ProbabilityAverage

        return ProbabilityAverage([member.build_model() for member in self.members])

    def restore(self, path: str, model: "keras.Model") -> int:
        """Restores the networks from a text of `checkpoint`; returns the largest of their steps.

        Raises CheckpointError if a checkpoint is damaged, belongs to another model, or has no averages.
        """
        members = zip(self.members, path.split(SEPARATOR), model.members, strict=True)
        return max(member.restore(checkpoint, network) for member, checkpoint, network in members)


def _requirements(run: TrainedRun | PackedRun) -> dict[str, str]:
    """What all runs of an ensemble must share."""
    data = run.config.data
    return {
        "classes": ", ".join(run.classes.names),
        "--image_size": "{} x {}".format(*data.size),
        "--resize": data.resize,
        "channels, depth and --intensity_range": str(data.image_spec),
    }
