"""Uses a trained run, to score a split, to predict or to export: flags -> EvalConfig -> petseg.runs.scoring."""

from petseg.config import command_line
from petseg.config.eval_config import EvalConfig
from petseg.runtime import startup


def main(config: EvalConfig) -> None:
    startup.load_tensorflow(show_greetings=config.score.debug)  # after the flags are checked
    from petseg.runs import scoring

    if config.score.predict:
        scoring.predict(config)
    elif config.score.export:
        scoring.export(config)
    else:
        scoring.evaluate(config)


if __name__ == "__main__":
    command_line.run(main, EvalConfig, __doc__)
