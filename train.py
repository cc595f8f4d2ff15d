"""Trains a U-Net on pets: flags -> Config -> petseg.experiment.train."""

from petseg import command_line, startup
from petseg.config import Config


def main(config: Config) -> None:
    startup.load_tensorflow()  # after the flags are checked
    from petseg import experiment

    experiment.train(config)


if __name__ == "__main__":
    command_line.run(main, Config, __doc__)
