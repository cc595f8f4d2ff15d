import programs_in_forks
import pytest

# Iterators that are 0.8 s old: an autotuning thread that misses its end would sleep on until 1.27 s.
CODE = """
import time
import tensorflow as tf
from petseg.runtime import autotuning
autotuning.switch_off_on_devices()
autotuning.switch_off_on_devices()  # twice is as good as once
strategy = tf.distribute.OneDeviceStrategy("cpu:0")
data = tf.data.Dataset.range(100).with_options(autotuning.off())
iterators = [iter(strategy.distribute_datasets_from_function(lambda _: data)) for _ in range(100)]
for iterator in iterators:
    next(iterator)
time.sleep(0.8)
longest = 0
while iterators:
    began = time.perf_counter()
    iterator = iterators.pop()
    del iterator
    longest = max(longest, time.perf_counter() - began)
print(longest)
"""


@pytest.mark.slow
def test_without_autotuning_an_iterator_ends_at_once():
    # Without the switch it is 0.4 s, or more: 100 iterators without one such thread are rare.
    result = programs_in_forks.run("-c", CODE)
    assert float(result.stdout) < 0.2, result.stderr
