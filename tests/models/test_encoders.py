"""Downloading the pretrained weights of an encoder."""

import os
import threading
import time

import keras
import numpy as np
import pytest

from petseg.models import encoders, pretrained_weights


def test_processes_download_encoder_weights_one_after_the_other(monkeypatch, tmp_path):
    genuine, inside, most = keras.applications.MobileNetV2, [], []

    def download(**options):
        inside.append(options["alpha"])
        most.append(len(inside))
        time.sleep(0.2)  # Keras writes into the file that the next one would find, and read
        inside.pop()
        return genuine(**{**options, "weights": None})

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(keras.applications, "MobileNetV2", download)
    threads = [
        threading.Thread(
            target=encoders.build_encoder,
            args=["mobilenet_v2"],
            kwargs={"image_size": (32, 32), "alpha": 0.35, "weights": "imagenet"},
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
    assert not list((tmp_path / "keras").iterdir())


def test_a_download_that_was_killed_is_downloaded_again(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    models = tmp_path / "models"
    models.mkdir()
    (models / "complete.h5").write_bytes(b"all of it")

    def killed():
        (models / "partial.h5").write_bytes(b"half")
        os._exit(9)

    process = os.fork()
    if not process:
        pretrained_weights.download(killed)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    assert (models / "partial.h5").exists()
    found = pretrained_weights.download(lambda: [file.name for file in models.iterdir()])
    assert found == ["complete.h5"]
    (models / "later.h5").write_bytes(b"all of it")
    found = pretrained_weights.download(lambda: {file.name for file in models.iterdir()})
    assert found == {"complete.h5", "later.h5"}


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_pretrained_weights_are_repeated_over_other_channels(tmp_path, channels):
    of_rgb = encoders.build_encoder("tiny", image_size=(32, 32))
    of_rgb.save_weights(tmp_path / "rgb.weights.h5")
    adapted = encoders.build_encoder(
        "tiny", image_size=(32, 32), weights=str(tmp_path / "rgb.weights.h5"), channels=channels
    )
    kernel, wider = (each.weights[0].numpy() for each in (of_rgb, adapted))
    if channels == 4:
        np.testing.assert_allclose(wider, kernel[:, :, [0, 1, 2, 0]] * 3 / 4, rtol=1e-6)
        return
    grey = np.random.default_rng(0).uniform(0, 1, (2, 32, 32, 1)).astype(np.float32)
    maps = of_rgb(np.repeat(grey, 3, axis=-1)), adapted(np.repeat(grey, channels, axis=-1))
    for expected, found in zip(*maps, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
