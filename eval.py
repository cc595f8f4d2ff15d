"""Uses a trained run: scores a split (petseg.runs.scoring), or predicts or exports (petseg.deployment)."""

from petseg.config import command_line
from petseg.config.eval_config import EvalConfig


def main(config: EvalConfig) -> None:
    from petseg.runs import run_groups
    from petseg.runtime import startup

    several_runs = run_groups.are_asked_for(config.score)
    if config.score.predict:  # loads TensorFlow itself, if it needs it
        from petseg.deployment import prediction_command

        prediction_command.predict(config)
        return
    startup.load_tensorflow(show_greetings=config.score.debug)  # after the flags are checked
    from petseg.deployment import commands
    from petseg.runs import scoring, several

    if several_runs:
        several.evaluate(config)
    elif config.score.export:
        commands.export(config)
    elif config.score.packed:
        commands.evaluate(config)
    else:
        scoring.evaluate(config)


if __name__ == "__main__":
    command_line.run(main, EvalConfig, __doc__)
