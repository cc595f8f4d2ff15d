"""The two programs: `python train.py` and `python eval.py` of a checkout, `petseg-train` and `petseg-eval` anywhere."""

from petseg.config import Config, command_line
from petseg.config.eval_config import EvalConfig
from petseg.runtime import startup


def train() -> None:
    """Trains: flags -> Config -> petseg.runs.train.train."""
    command_line.run(_train, Config, "Trains a network that says of each pixel of a picture what it shows.")


def evaluate() -> None:
    """Uses a trained run: scores a split (petseg.runs.scoring), or predicts or exports (petseg.deployment)."""
    command_line.run(_evaluate, EvalConfig, "Uses a trained run: scores a split, predicts masks, or exports the model.")


def _train(config: Config) -> None:
    config.data.check_data_dir()  # at once: otherwise found only when the data set is opened
    startup.load_tensorflow(show_greetings=config.runtime.debug)  # after the flags are checked
    from petseg.runs import train

    train.train(config)


def _evaluate(config: EvalConfig) -> None:
    score = config.score
    if score.predict:  # loads TensorFlow itself, if it needs it
        from petseg.deployment import prediction_command

        prediction_command.predict(config)
        return
    from petseg.runs import run_groups

    several_runs = run_groups.names_several_runs(score)
    startup.load_tensorflow(show_greetings=score.debug)  # after the flags are checked
    from petseg.deployment import commands
    from petseg.runs import group_scoring, scoring

    if several_runs:
        group_scoring.evaluate(config)
    elif score.export:
        commands.export(config)
    elif score.packed:
        commands.evaluate(config)
    else:
        scoring.evaluate(config)
