"""Requests to a compiled loop from outside: to stop, or to save a checkpoint."""

import tensorflow as tf


class StopRequests:
    """Flags that ask the training loop to stop or save; any thread of any process may set them.

    Create it outside the strategy's scope.

    Attributes:
      stop: float32 variable; 1 ends the loop after the current step.
      save: float32 variable; 1 makes `Trainer.requested` report, in all processes, that a checkpoint is requested.
    """

    def __init__(self) -> None:
        with tf.device("cpu:0"):
            self.stop, self.save = tf.Variable(0.0), tf.Variable(0.0)
