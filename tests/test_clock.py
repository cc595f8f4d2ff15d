import math

from hypothesis import given, strategies as st

from petseg.clock import Clock, Timer

intervals = st.integers(1, 50)


@given(total=st.integers(1, 200), per_loop=intervals, summary=intervals, evaluation=intervals, checkpoint=intervals)
def test_the_clock_stops_wherever_something_is_due_and_at_the_end(total, per_loop, summary, evaluation, checkpoint):
    clock = Clock(total, per_loop, summary, evaluation, checkpoint)
    step, stops = 0, []
    while step < total:
        count = clock.steps_to_next(step)
        assert 1 <= count <= per_loop
        step += count
        stops.append(step)
    assert step == total
    for every in (summary, evaluation, checkpoint):
        due = [*range(every, total + 1, every), total]
        assert set(due) <= set(stops)
        assert {stop for stop in stops if clock.due(stop, every)} == set(due)


def test_the_timer_counts_only_what_it_surrounds():
    timer = Timer()
    assert math.isnan(timer.rate(10))
    with timer:
        pass
    assert timer.rate(10) > 10_000
    assert math.isnan(timer.rate(10))
