"""Uses a trained run, to score a split, to predict or to export: flags -> EvalConfig -> petseg.scoring."""

from petseg import command_line, startup
from petseg.eval_config import EvalConfig


def main(config: EvalConfig) -> None:
    startup.load_tensorflow()  # after the flags are checked
    from petseg import scoring

    if config.score.predict:
        scoring.predict(config)
    elif config.score.export:
        scoring.export(config)
    else:
        scoring.evaluate(config)


if __name__ == "__main__":
    command_line.run(main, EvalConfig, __doc__)
