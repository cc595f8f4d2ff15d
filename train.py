"""Trains a U-Net on pets: flags -> Config -> petseg.experiment.train."""

from petseg import command_line
from petseg.config import Config


def main(config: Config) -> None:
    from petseg import experiment  # TensorFlow loads here, after the flags are checked

    experiment.train(config)


if __name__ == "__main__":
    command_line.run(main, Config, __doc__)
