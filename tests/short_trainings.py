"""Trainings that take less time: those that reuse what an earlier one has built, and those that only make steps."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import tensorflow as tf
import two_convolutions
import white_figures

from petseg.config import Config, ModelConfig
from petseg.reporting import pictures
from petseg.runs import building, resume_or_init, setup
from petseg.runs.work_directory import WorkDirectory
from petseg.runtime import process_setup
from petseg.runtime.signals import StopSignals

FIGURES = ("prediction_sheet", "training_batch", "training_curves", "confusion_matrix")
# For tests in which any network will do; it is traced in a third of the time of `tiny`.
SMALL_NETWORK = ModelConfig(network=f"{two_convolutions.__file__}:build")


@contextlib.contextmanager
def built_once(folder: Path) -> Iterator[None]:
    """Later runs reuse the network, compiled step and evaluator of the first; they begin alike.

    Their configs may differ in data, cache, length and work directory. State that a trainer keeps beside its
    checkpoints is that of the end of the run before, so a resumed run shows it.
    """
    made, initial = {}, str(folder / "initial")

    def once(function):
        def first(*arguments, **options):
            if function not in made:
                made[function] = function(*arguments, **options)
            return made[function]

        return first

    build_trainer, build_evaluator = once(building.build_trainer), building.build_evaluator
    evaluator_of_trainings = once(build_evaluator)

    def trainer(*arguments):
        found = build_trainer(*arguments)
        state = tf.train.Checkpoint(**found.state())
        found.pop_measurements()
        found.clear_nonfinite_step()
        if Path(f"{initial}.index").exists():
            state.read(initial).assert_consumed()
        else:
            state.write(initial)
        return found

    def evaluator(config, strategy, model, examples, *rest, **options):
        if options:  # of eval.py
            return build_evaluator(config, strategy, model, examples, *rest, **options)
        found = evaluator_of_trainings(config, strategy, model, examples, *rest)
        found._examples = examples  # whose cache may have been written again
        return found

    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in (
            (resume_or_init, "build_initial_model", once(resume_or_init.build_initial_model)),
            (building, "build_trainer", trainer),
            (building, "build_evaluator", evaluator),
            (setup, "StopRequests", once(setup.StopRequests)),
            (process_setup, "set_up_runtime", once(process_setup.set_up_runtime)),
            (pictures, "to_array", white_figures.to_array),
            *((pictures, name, once(getattr(pictures, name))) for name in FIGURES),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def variables(checkpoint: str | Path) -> dict[str, np.ndarray]:
    """The values in a checkpoint: `optimizer/weights/` are those that are trained, `model/` all others of the model."""
    reader = tf.train.load_checkpoint(str(checkpoint))
    # Without the graph of its objects, in which Keras's names count the layers that the process made before.
    names = reader.get_variable_to_shape_map().keys() - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    return {name: reader.get_tensor(name) for name in names}


def of_the_model(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of `variables` that the model holds."""
    return {name: value for name, value in values.items() if name.startswith(("model/", "optimizer/weights/"))}


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """That two of `variables` hold the same bits."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def steps_only(config: Config) -> dict[str, np.ndarray]:
    """Trains a new run without evaluation, logs and checkpoints; returns its last `variables`."""
    workdir = WorkDirectory.for_training(config.runtime.workdir, config.data.dataset)
    placement = process_setup.set_up_runtime(config, config.distribution, trains=True)
    with StopSignals() as signals:
        run = setup.set_up(config, workdir, placement, signals)
    steps = range(run.schedule.last_step)
    batches = building.training_batches(
        run.config, placement.strategy, run.train_examples, steps=steps, bad_examples=run.bad_examples.log
    )
    run.trainer.run(batches, len(steps))
    run.trainer.complete_state()
    return variables(tf.train.Checkpoint(**run.trainer.state()).write(f"{workdir.path}/last"))
