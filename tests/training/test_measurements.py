import pytest
from conftest import make_trainer, random_examples

from petseg.runs.checkpoints import Checkpoints
from petseg.training import measurements
from petseg.training.trainer import Trainer


@pytest.fixture
def measuring_more(monkeypatch):
    """Has the step measure another scalar, as somebody does who adds one."""
    measure = Trainer._measure

    def switch_on():
        monkeypatch.setitem(measurements.MEANS, "squared_norm", "The gradient norm, squared.")
        monkeypatch.setattr(
            Trainer, "_measure", lambda self, **values: measure(self, **values) | {"squared_norm": values["norm"] ** 2}
        )

    return switch_on


def test_a_run_goes_on_after_a_scalar_was_added_to_its_step_or_taken_away(tmp_path, measuring_more):
    examples = random_examples(8)
    old, _, batches = make_trainer(examples=examples)
    old.run(batches, 2)
    old.complete_state()
    Checkpoints(tmp_path, keep=1, **old.state()).save(2)
    before = old.pop_measurements()

    measuring_more()
    new, _, batches = make_trainer(examples=examples)
    checkpoints = Checkpoints(tmp_path, keep=1, **new.state())
    checkpoints.restore(checkpoints.newest())
    new.complete_state()
    checkpoints.save(3)
    restored = new.pop_measurements()
    assert restored.steps == 2
    assert restored.scalars["squared_norm"] == 0
    assert {name: restored.scalars[name] for name in before.scalars} == before.scalars
    new.run(batches, 1)
    after = new.pop_measurements().scalars
    assert after["squared_norm"] == pytest.approx(after["gradient_norm"] ** 2)

    del measurements.MEANS["squared_norm"]
    old, *_ = make_trainer(examples=examples)
    Checkpoints(tmp_path, keep=1, **old.state()).restore(str(tmp_path / "ckpt-3"))
    assert old.pop_measurements().scalars == before.scalars


def test_a_scalar_that_nobody_described_is_refused():
    sums = measurements.MeasuredSums(3)
    with pytest.raises(ValueError, match=r"measured are \['loss', 'surprise'\], described are"):
        sums.add({"loss": 1.0, "surprise": 2.0})
