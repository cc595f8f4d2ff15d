"""Entry points: `petseg-train` and `petseg-eval`, or `python train.py` and `python eval.py` in a checkout."""

from petseg.config import Config, command_line
from petseg.config.eval_config import EvalConfig
from petseg.runtime import startup


def train() -> None:
    """Trains: flags -> Config -> petseg.runs.train.train."""
    command_line.run(_train, Config, "Trains a semantic segmentation network.")


def evaluate() -> None:
    """Evaluates, predicts with or exports a trained model: flags -> EvalConfig -> petseg.runs or petseg.deployment."""
    command_line.run(
        _evaluate, EvalConfig, "Evaluates a trained model on a split, predicts masks with it, or exports it."
    )


def _train(config: Config) -> None:
    config.data.check_data_dir()  # before TensorFlow loads, which takes seconds
    startup.load_tensorflow(show_greetings=config.runtime.debug)
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
    startup.load_tensorflow(show_greetings=score.debug)
    from petseg.deployment import export_command
    from petseg.runs import group_scoring, scoring

    if several_runs:
        group_scoring.evaluate(config)
    elif score.export:
        export_command.export(config)
    else:
        scoring.evaluate(config)
