import contextlib
import io
import logging
import sys

import pytest

from petseg.reporting.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def train(progress):
    with contextlib.closing(progress):
        progress.start()
        for step in range(5, 41, 5):
            if step % 10 == 0:
                progress.show(loss=1 / step, mean_iou=0.5, images_per_second=12.34)
            progress.advance(step)


def test_on_a_terminal_progress_is_a_bar_over_the_whole_run(monkeypatch, caplog):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with caplog.at_level(logging.INFO, "petseg"):
        train(Progress(0, 40, steps_per_epoch=20, log_every=10))
    assert not caplog.messages
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("epoch 2/2 100%|")
    assert "40/40 steps, loss 0.0250, mean IoU 0.5000, 12.3 images/s [00:00<00:00]" in last


def test_without_a_terminal_progress_is_a_log_line_at_an_interval(caplog):
    with caplog.at_level(logging.INFO, "petseg"):
        train(Progress(0, 40, steps_per_epoch=20, log_every=20))
    assert caplog.messages == [
        "step 20/40, epoch 2/2: loss 0.0500, mean IoU 0.5000, 12.3 images/s, 00:00 left",
        "step 40/40, epoch 2/2: loss 0.0250, mean IoU 0.5000, 12.3 images/s, 00:00 left",
    ]


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_hidden_progress_prints_nothing(monkeypatch, caplog, stream):
    output = stream()
    monkeypatch.setattr(sys, "stderr", output)
    with caplog.at_level(logging.INFO, "petseg"):
        train(Progress(0, 40, steps_per_epoch=20, log_every=10, hidden=True))
    assert not caplog.messages
    assert not output.getvalue()
