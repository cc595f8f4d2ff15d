from types import SimpleNamespace

import keras
import pytest

from petseg.errors import ClusterError
from petseg.runs import setup

MESSAGES = [
    "worker 1 is at step 5, another process elsewhere: --workdir=runs/pets must be the same folder for all",
    "worker 1 was started with other flags than another process",
    "worker 1 begins with other weights than another process",
]


def check(config, differs_at):
    """What a process does whose n-th question the other one answers differently."""
    questions = []

    def gather(value):
        questions.append(value)
        return [value, value + (len(questions) - 1 == differs_at)]

    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
    placement = SimpleNamespace(name="worker 1", gather=gather)
    setup.check_agreement(config, 5, model, SimpleNamespace(path="runs/pets"), placement)
    return questions


@pytest.mark.parametrize("differs_at", range(len(MESSAGES)))
def test_processes_that_differ_in_step_flags_or_weights_refuse_to_train(tiny_config, differs_at):
    with pytest.raises(ClusterError, match=MESSAGES[differs_at]) as caught:
        check(tiny_config, differs_at)
    assert caught.value.exit_code == 75


def test_processes_that_agree_compare_step_flags_and_weights(tiny_config):
    assert len(check(tiny_config, differs_at=None)) == len(MESSAGES)
