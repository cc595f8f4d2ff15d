"""Where an encoder's weights come from."""

import threading
import time

import keras

from petseg.models import encoders


def test_processes_that_need_keras_weights_fetch_them_one_after_the_other(monkeypatch, tmp_path):
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
