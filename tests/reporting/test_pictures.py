import importlib
import io

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from petseg.classes import PETS, Classes
from petseg.models import encoders, unet
from petseg.reporting import figure_text, model_diagram, pictures

pytestmark = pytest.mark.usefixtures("drawn_figures")


def test_masks_get_the_colours_of_their_classes():
    colored = PETS.palette[np.array([[0, 1], [2, 255]], np.uint8)]
    np.testing.assert_array_equal(colored[0], [PETS.members[0].color, PETS.members[1].color])
    np.testing.assert_array_equal(colored[1], [PETS.members[2].color, [0, 0, 0]])


def test_a_prediction_sheet_has_a_row_per_example_and_a_legend():
    rng = np.random.default_rng(0)
    images, masks = rng.integers(0, 256, (6, 32, 32, 3), np.uint8), rng.integers(0, 3, (6, 32, 32), np.uint8)
    masks[0, 0, :2], predictions = (255, 1), masks.copy()
    predictions[0, 0, :2] = 0  # one pixel that belongs to no class, one that is wrong
    confidences = np.full(masks.shape, 1.0)
    names = [f"pet {i}" for i in range(6)]
    figure = pictures.prediction_sheet(images, masks, predictions, confidences, names, PETS)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["image", "truth", "prediction", "errors", "confidence", *names]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*PETS.names, "wrong"]
    canvas = figure.axes[0].get_images()[0].get_array()
    np.testing.assert_array_equal(canvas[:32, :32], images[0])
    np.testing.assert_array_equal(canvas[:32, 33:65], PETS.palette[masks[0]])
    np.testing.assert_array_equal(canvas[:32, 66:98], PETS.palette[predictions[0]])
    assert np.argwhere((canvas[:32, 99:131] == pictures.WRONG_COLOR).all(-1)).tolist() == [[0, 1]]
    np.testing.assert_array_equal(canvas[:32, 132:164], np.broadcast_to([253, 231, 36], (32, 32, 3)))  # viridis at 1
    png = pictures.to_png(figure)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), pictures.to_array(figure))


def test_a_comparison_sheet_shows_the_errors_of_each_model():
    rng = np.random.default_rng(0)
    images, masks = rng.integers(0, 256, (2, 32, 32, 3), np.uint8), np.zeros((2, 32, 32), np.uint8)
    wrong = masks.copy()
    wrong[1, 3, 4] = 1
    figure = pictures.comparison_sheet(images, masks, {"old": wrong, "new": masks}, ["a", "b"], PETS)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["image", "truth", "old", "old: errors", "new", "new: errors", "a", "b"]
    canvas = figure.axes[0].get_images()[0].get_array()
    assert np.argwhere((canvas[33:65, 99:131] == pictures.WRONG_COLOR).all(-1)).tolist() == [[3, 4]]
    assert not (canvas[:, 165:] == pictures.WRONG_COLOR).all(-1).any()


def test_a_training_batch_shows_pixel_weights():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    masks = np.zeros((2, 32, 32), np.uint8)
    weights = np.zeros((2, 32, 32), np.float32)
    weights[:, :16] = 0.5
    figure = pictures.training_batch(images, masks, weights, ["a", "b"], PETS)
    canvas = figure.axes[0].get_images()[0].get_array()
    np.testing.assert_array_equal(canvas[:32, :32], images[0])
    assert len(np.unique(canvas[:32, 66:98].reshape(-1, 3), axis=0)) == 2
    assert figure.axes[1].get_xlim() == (0.0, 0.5)


def test_a_confusion_matrix_shows_shares_of_its_rows_and_counts():
    matrix = np.array([[75, 25, 0], [0, 1000, 0], [0, 0, 0]])  # the last class occurs nowhere
    figure = pictures.confusion_matrix(matrix, PETS.names)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[:3] == ["75.0%\n75", "25.0%\n25", "0.0%\n0"]
    assert texts[4] == "100.0%\n1,000"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list(PETS.names)


def test_training_curves_draw_every_point():
    rows = [(10, "train", "loss", 1.0), (20, "train", "loss", 0.5), (20, "eval", "loss", 0.7)]
    loss = pictures.training_curves(rows, 10, PETS).axes[0]
    assert {line.get_label(): line.get_xydata().tolist() for line in loss.lines} == {
        "train": [[1.0, 1.0], [2.0, 0.5]],
        "eval": [[2.0, 0.7]],
    }


def test_the_model_diagram_names_every_stage_with_its_size():
    size = (32, 32)
    encoder = encoders.build_encoder("tiny", image_size=size)
    model = unet.build_unet(
        image_size=(32, 32), num_classes=3, encoder=encoder, train_encoder=False, input_scaling="unit"
    )
    figure = model_diagram.draw(model)
    texts = " ".join(text.get_text() for text in figure.axes[0].texts)
    for shape in ("32 x 32 x 3", "16 x 16 x 8", "1 x 1 x 48", "2 x 2 x 544"):
        assert shape in texts
    picture = pictures.to_array(figure)
    assert picture.dtype == np.uint8
    assert picture.shape[-1] == 3


def test_figures_of_a_hundred_classes_show_those_that_occur():
    classes = Classes.from_dict([f"kind{i}" for i in range(100)])
    assert len({each.color for each in classes.members}) == 100
    images, masks = np.zeros((2, 32, 32, 3), np.uint8), np.full((2, 32, 32), 98, np.uint8)
    sheet = pictures.prediction_sheet(images, masks, np.full_like(masks, 7), np.ones(masks.shape), ["a", "b"], classes)
    assert [text.get_text() for text in sheet.legends[0].get_texts()] == ["kind7", "kind98", "wrong"]
    matrix = pictures.confusion_matrix(np.eye(100, dtype=np.int64), classes.names)
    assert not matrix.axes[0].texts  # there is no room for numbers
    rows = [(10, "eval", f"iou/{name}", 0.5) for name in classes.names]
    *_, together = (axis for axis in pictures.training_curves(rows, 10, classes).axes if axis.axison)
    assert len(together.lines) == 100


def drawn(names, classes=PETS, model="model"):
    """A sheet of small pictures with such names, as pixels."""
    images = np.full((len(names), 32, 32, 3), 128, np.uint8)
    masks = np.zeros(images.shape[:3], np.uint8)
    return pictures.to_array(pictures.comparison_sheet(images, masks, {model: masks}, names, classes))


def text_drawn(text, **properties):
    figure = Figure(figsize=(4, 1))
    figure.text(0.05, 0.5, text, **properties)
    return pictures.to_array(figure)


@pytest.mark.parametrize(
    "name",
    ["price_$5_$6.jpg", "$x$", "$\\frac{$", "a$", "\\$5^$.png", "\udcff.jpg", "\x00\x07\x7f.jpg", "a\nb", "%_^{}#"],
)
def test_any_name_is_drawn_literally(name, monkeypatch):
    drawn([name], model=name)
    classes = Classes.from_dict([{"name": "a"}, {"name": "b"}])
    pictures.to_array(pictures.confusion_matrix(np.eye(2, dtype=np.int64), [name, "b"]))
    pictures.to_array(pictures.training_curves([], 1, classes))
    if name == "$x$":
        np.testing.assert_array_equal(text_drawn("$x$"), text_drawn("$x$", parse_math=False))
        monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)  # as a user's matplotlibrc may set it
        drawn([name])


def test_tick_labels_of_numeric_axes_keep_mathtext():
    figure = Figure()
    axis = figure.subplots()
    axis.plot([1, 1000], [1, 2])
    axis.set(xscale="log", xlabel="$a$")
    pictures.to_array(figure)
    assert [text.get_parse_math() for text in axis.get_xticklabels()] == [True] * len(axis.get_xticklabels())
    assert not axis.xaxis.label.get_parse_math()


@pytest.fixture
def han_font(tmp_path):
    """A font whose only letter is U+732B, a filled square, while the test runs."""
    builder = FontBuilder(1000)
    pen = TTGlyphPen(None)
    for i, point in enumerate([(0, 0), (0, 900), (900, 900), (900, 0)]):
        (pen.lineTo if i else pen.moveTo)(point)
    pen.closePath()
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({0x732B: "cat"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Han of the tests", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "han.ttf")
    before = list(font_manager.fontManager.ttflist)
    yield lambda: font_manager.fontManager.addfont(tmp_path / "han.ttf")
    font_manager.fontManager.ttflist[:] = before


def test_names_in_other_scripts_are_drawn_in_a_font_that_has_them(han_font, monkeypatch, caplog):
    importlib.reload(figure_text)  # resets its cache of fonts
    boxes = text_drawn("\u732b")
    han_font()
    importlib.reload(figure_text)
    caplog.clear()
    letters = text_drawn("\u732b")
    assert (letters != boxes).any()
    assert (letters == 0).all(-1).sum() > 50  # the square
    assert not caplog.messages
    importlib.reload(figure_text)


def test_characters_that_no_font_has_are_warned_of_once(caplog, recwarn):
    importlib.reload(figure_text)
    classes = Classes.from_dict(["\uabcd", "\u1b05x"])
    for name in ("\ufdd0.jpg", "\ufdd0\ufdd1.jpg"):
        drawn([name], classes)
        pictures.to_png(pictures.confusion_matrix(np.eye(2, dtype=np.int64), classes.names))
    (message,) = caplog.messages
    assert message.startswith("figures show boxes for characters of names that no installed font has (")
    assert "install a font that has them" in message
    assert not [each for each in recwarn if "Glyph" in str(each.message)]
