import numpy as np
from PIL import Image

from petseg import unet, visualization
from petseg.config import CLASS_NAMES


def test_masks_get_the_colours_of_their_classes():
    colored = visualization.colorize(np.array([[0, 1], [2, 255]], np.uint8))
    np.testing.assert_array_equal(colored[0, 0], visualization.CLASS_COLORS[0])
    np.testing.assert_array_equal(colored[1], [visualization.CLASS_COLORS[2], [0, 0, 0]])


def test_a_prediction_sheet_shows_all_examples_with_a_legend(tmp_path):
    rng = np.random.default_rng(0)
    images, masks = rng.integers(0, 256, (6, 32, 32, 3), np.uint8), rng.integers(0, 3, (6, 32, 32), np.uint8)
    figure = visualization.prediction_sheet(images, masks, masks, [f"pet {i}" for i in range(6)])
    pictures = [axis.get_images()[0] for axis in figure.axes if axis.get_images()]
    assert len(pictures) == 18
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(CLASS_NAMES)
    visualization.save(figure, tmp_path / "figures" / "sheet.png")
    assert Image.open(tmp_path / "figures" / "sheet.png").size == tuple(int(s * 100) for s in figure.get_size_inches())


def test_curves_hold_every_logged_point():
    rows = [(10, "train", "loss", 1.0), (20, "train", "loss", 0.5), (20, "eval", "loss", 0.7)]
    loss = visualization.training_curves(rows, steps_per_epoch=10).axes[0]
    assert {line.get_label(): line.get_xydata().tolist() for line in loss.lines} == {
        "train": [[1.0, 1.0], [2.0, 0.5]],
        "eval": [[2.0, 0.7]],
    }


def test_the_model_diagram_names_every_stage_with_its_size():
    encoder = unet.build_encoder(image_size=32, alpha=0.35)
    model = unet.build_unet(image_size=32, num_classes=3, encoder=encoder, train_encoder=False, input_scaling="unit")
    figure = visualization.model_diagram(model)
    texts = " ".join(text.get_text() for text in figure.axes[0].texts)
    for shape in ("32 x 32 x 3", "16 x 16 x 48", "1 x 1 x 112", "2 x 2 x 704"):
        assert shape in texts
    picture = visualization.to_array(figure)
    assert picture.dtype == np.uint8
    assert picture.shape[-1] == 3
