"""Scores what a run has trained."""

from typing import Any

from petseg import building, checkpointing, evaluator, trainer
from petseg.config import EvalConfig
from petseg.data import datasets
from petseg.errors import DataError
from petseg.signals import StopSignals
from petseg.work_directory import WorkDirectory, write_json


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Scores one checkpoint of a run on a split, writes the results file, prints the table.

    Raises:
      PetsegError: if work directory, checkpoint or split cannot be used, or a signal came.
    """
    score = config.score
    workdir = WorkDirectory(score.workdir)
    run = workdir.load_config()
    path = checkpointing.find(workdir.checkpoints, workdir.best, score.checkpoint)
    split, data_dir = score.split or run.data.eval_split, score.data_dir or run.data.data_dir
    shared = datasets.overlap(run.data.dataset, split, run.data.train_split, data_dir)
    if shared and not score.allow_training_images:
        raise DataError(
            f"--split={split}: {shared} of its images were trained on ({run.data.train_split}); "
            "a score on them says little; --allow_training_images scores them all the same"
        )
    placement = building.set_up_runtime(run, config.distribution)
    with StopSignals() as signals:
        requests = trainer.Requests()
        signals.call(lambda: requests.stop.assign(1.0))
        examples = datasets.load(run.data.dataset, split, run.data.image_size, data_dir)
        with placement.strategy.scope():
            model = building.build_model(run, None)
            scorer = building.build_evaluator(
                run, placement.strategy, model, examples, workdir.load_class_weights(), requests, score.batch_size
            )
        step = checkpointing.restore_model(path, model)
        evaluation = scorer.evaluate()
        if evaluation is None:
            raise signals.stopped(f"scored only some of the {len(examples)} examples; nothing was written")
    results = evaluation.results(step, split)
    if placement.is_chief:
        results_file = workdir.results_file(split, step)
        write_json(results_file, results)
        print(evaluator.table(results))
        print(f"\ncheckpoint: {path}\nresults:    {results_file}")
    placement.gather(0)
    return results
