"""Uses a trained run: scores a split (petseg.runs.scoring), or predicts or exports (petseg.deployment.commands)."""

from petseg.config import command_line
from petseg.config.eval_config import EvalConfig
from petseg.runtime import startup


def main(config: EvalConfig) -> None:
    startup.load_tensorflow(show_greetings=config.score.debug)  # after the flags are checked
    from petseg.deployment import commands
    from petseg.runs import scoring, several

    if several.is_asked(config.score):
        several.evaluate(config)
    elif config.score.predict:
        commands.predict(config)
    elif config.score.export:
        commands.export(config)
    elif config.score.packed:
        commands.evaluate(config)
    else:
        scoring.evaluate(config)


if __name__ == "__main__":
    command_line.run(main, EvalConfig, __doc__)
