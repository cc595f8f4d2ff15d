"""Scores a trained run on a split: flags -> EvalConfig -> petseg.scoring.evaluate."""

from petseg import command_line
from petseg.config import EvalConfig


def main(config: EvalConfig) -> None:
    from petseg import scoring  # TensorFlow loads here, after the flags are checked

    scoring.evaluate(config)


if __name__ == "__main__":
    command_line.run(main, EvalConfig, __doc__)
