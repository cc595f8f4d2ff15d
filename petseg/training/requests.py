"""What a compiled loop is asked from outside."""

import tensorflow as tf


class Requests:
    """What the loop is asked from outside, by any thread, in any process of a cluster. Make it outside the strategy.

    Attributes:
      stop: float32 variable; set to 1, the loop ends after the step it is at.
      save: float32 variable; set to 1, `Trainer.requested` tells all processes that one of them wants a checkpoint.
    """

    def __init__(self) -> None:
        with tf.device("cpu:0"):
            self.stop, self.save = tf.Variable(0.0), tf.Variable(0.0)
