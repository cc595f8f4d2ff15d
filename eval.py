"""Scores a trained run on a split: flags -> EvalConfig -> petseg.experiment.evaluate."""

from petseg import command_line
from petseg.config import EvalConfig


def main(config: EvalConfig) -> None:
    from petseg import experiment  # TensorFlow loads here, after the flags are checked

    experiment.evaluate(config)


if __name__ == "__main__":
    command_line.run(main, EvalConfig, __doc__)
