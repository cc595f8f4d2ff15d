"""Trains a U-Net on pets: flags -> Config -> petseg.runs.experiment.train."""

from petseg.config import Config, command_line
from petseg.runtime import startup


def main(config: Config) -> None:
    startup.load_tensorflow(show_greetings=config.runtime.debug)  # after the flags are checked
    from petseg.runs import experiment

    experiment.train(config)


if __name__ == "__main__":
    command_line.run(main, Config, __doc__)
