import dataclasses

from hypothesis import given, strategies as st

from petseg.runs.schedule import Schedule

intervals = st.integers(1, 50)


@given(
    total=st.integers(1, 200),
    per_loop=intervals,
    summary=intervals,
    evaluation=intervals,
    checkpoint=intervals,
    histogram=intervals,
    first=st.integers(0, 200),
    profiled=st.integers(0, 20),
)
def test_the_next_call_ends_where_something_is_due_or_the_run_ends(
    total, per_loop, summary, evaluation, checkpoint, histogram, first, profiled
):
    profile = (first, first + profiled)
    schedule = Schedule(total, 10, per_loop, summary, histogram, evaluation, checkpoint, profile)
    step, stops = 0, []
    while step < total:
        count = schedule.steps_to_next(step)
        assert 1 <= count <= per_loop
        step += count
        stops.append(step)
    assert step == total
    assert set(range(first, min(first + profiled, total) + 1)) <= {0, *stops} or not profiled  # one step at a time
    for every in (summary, evaluation, checkpoint, histogram):
        due = [*range(every, total + 1, every), total]
        assert set(due) <= set(stops)
        assert {stop for stop in stops if schedule.due(stop, every)} == set(due)


def test_an_interval_of_ones_own_is_a_field_of_the_schedule():
    @dataclasses.dataclass(frozen=True)
    class WithPings(Schedule):
        ping_every: int = 3

    assert WithPings(10, 10, 10, 10, 10, 10, 10).steps_to_next(1) == 2
