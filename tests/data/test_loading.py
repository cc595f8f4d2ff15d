import io
import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import NUM_TEST, NUM_TRAIN, data_config, load_examples
from PIL import Image

from petseg.data import catalog, example_decoding, loading
from petseg.data.drawings import animal_drawing
from petseg.data.split_source import SplitSource
from petseg.errors import DataError


def png(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


def picture(height=40, width=30):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def trimap(height=40, width=30, high=3):
    return np.random.default_rng(1).integers(1, high + 1, (height, width), np.uint8)


ONE_CHANNEL = tfds.features.Image(shape=(None, None, 1))


def write_data_set(
    folder,
    examples,
    name="handmade_pets",
    version="1.0.0",
    shards=1,
    ordered=True,
    names=("image", "segmentation_mask"),
    mask=ONE_CHANNEL,
    others=(),
):
    """Prepares a TFDS data set whose `train` split holds (image file, mask file) pairs, whatever is in the files."""
    features = tfds.features.FeaturesDict(dict(zip(names, (tfds.features.Image(), mask, *others), strict=True)))

    class Handmade(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=ordered)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, pair in enumerate(examples):
                yield i, dict(zip(names, pair, strict=True))

    Handmade.name = name
    options = tfds.download.DownloadConfig(num_shards=shards)
    Handmade(data_dir=folder).download_and_prepare(download_config=options)


def test_a_split_is_decoded_resized_and_shifted_to_class_ids(data_dir):
    examples = load_examples("synthetic_pets", "train", 64, str(data_dir))
    assert len(examples) == NUM_TRAIN
    assert examples.images.shape == (NUM_TRAIN, 64, 64, 3)
    assert examples.masks.shape == (NUM_TRAIN, 64, 64, 1)
    assert examples.images.dtype == examples.masks.dtype == np.uint8
    assert set(np.unique(examples.masks)) == {0, 1, 2}
    assert all(name.endswith(".jpg") for name in examples.names)


def test_a_slice_holds_its_examples_of_the_split(data_dir):
    whole = load_examples("synthetic_pets", "train", 32, str(data_dir))
    tail = load_examples("synthetic_pets", "train[20:]", 32, str(data_dir))
    np.testing.assert_array_equal(whole.images[20:], tail.images)
    assert whole.names[20:] == tail.names


def test_some_examples_of_a_split_are_decoded_without_the_others(data_dir, monkeypatch):
    whole = load_examples("synthetic_pets", "train", 32, str(data_dir))
    decoded = []
    genuine = example_decoding.check_example
    monkeypatch.setattr(example_decoding, "check_example", lambda *args: (decoded.append(args), genuine(*args)))
    first = loading.load_some(data_config("synthetic_pets", 32, data_dir), "train", count=5)
    spread = loading.load_some(data_config("synthetic_pets", 32, data_dir), "train", count=10, spread=True)
    for some, positions in ((first, slice(5)), (spread, slice(None, None, 3))):
        np.testing.assert_array_equal(some.images, whole.images[positions])
        np.testing.assert_array_equal(some.masks, whole.masks[positions])
        assert some.names == whole.names[positions]
    assert len(decoded) == 5 + 8
    assert len(loading.load_some(data_config("synthetic_pets", 32, data_dir), "train", count=100)) == NUM_TRAIN
    every = loading.load_some(data_config("synthetic_pets", 32, data_dir), "train", count=100, spread=True)
    assert len(every) == NUM_TRAIN


def test_examples_name_their_origin(array_record_dir, tmp_path):
    folder = str(array_record_dir)
    for cache in ("memory", "disk", "none"):
        examples = load_examples("synthetic_pets", "test[:3]", 32, folder, cache=cache, cache_dir=str(tmp_path))
        assert examples.origin == "synthetic_pets/2.0.0, test[:3]"


@pytest.mark.parametrize(("cpus", "memory", "expected"), [(3, 2**40, 3), (200, 36 * 2**30, 25), (200, 2**20, 1)])
def test_decoding_uses_the_usable_cpus_within_the_memory(data_dir, monkeypatch, cpus, memory, expected):
    used = []
    genuine = tf.data.Dataset.map

    def watched(self, function, num_parallel_calls=None, **options):
        used.append(num_parallel_calls)
        return genuine(self, function, num_parallel_calls, **options)

    monkeypatch.setattr("os.cpu_count", lambda: 96)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cpus)), raising=False)
    monkeypatch.setattr("petseg.runtime.cpus.usable_memory", lambda: memory)
    monkeypatch.setattr(tf.data.Dataset, "map", watched)
    source = SplitSource.open(data_config("synthetic_pets", 32, data_dir), "test", None)
    source.decoded(source.undecoded())
    next(loading.native_pairs(data_config("synthetic_pets", 32, data_dir), "test"))
    assert used.count(expected) == 2
    assert 96 not in used


def test_masks_are_resized_by_nearest_neighbour(tmp_path):
    mask = np.full((100, 100), 1, np.uint8)
    mask[:, 50:] = 3  # anything smoother would invent the class between
    write_data_set(tmp_path, [(png(picture(100, 100)), png(mask))])
    assert set(np.unique(load_examples("handmade_pets", "train", 32, str(tmp_path)).masks)) == {0, 2}


@pytest.mark.parametrize(
    ("feature", "values", "mask"),
    [
        (
            tfds.features.Image(shape=(None, None, 1), dtype=np.uint16),
            (300, 65535),
            np.tile(np.array([300, 65535, 255], np.uint16), (36, 12)),
        ),
        (
            tfds.features.Image(shape=(None, None, 3)),
            ([255, 0, 0], [0, 0, 255]),
            np.tile(np.array([[255, 0, 0], [0, 0, 255], [1, 2, 3]], np.uint8), (36, 12, 1)),
        ),
    ],
    ids=["16 bits", "colours"],
)
def test_features_of_any_name_and_masks_of_any_kind_become_class_ids(tmp_path, feature, values, mask):
    write_data_set(tmp_path, [(png(picture(36, 36)), png(mask))], "streets", names=("photo", "labels"), mask=feature)
    ignored = 255 if mask.ndim == 2 else [[1, 2, 3]]
    classes = [{"name": name, "value": value} for name, value in zip(("road", "sky"), values, strict=True)]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes, "ignored": ignored}))
    flags = {"classes": str(tmp_path / "classes.json"), "image_feature": "photo", "mask_feature": "labels"}
    config = data_config("streets", 64, tmp_path, resize="letterbox", **flags)
    examples = loading.load(config, "train")
    assert examples.classes.names == ("road", "sky")
    ((_, ids),) = loading.native_pairs(config, "train")
    np.testing.assert_array_equal(ids[..., 0], np.tile(np.array([0, 1, 255], np.uint8), (36, 12)))
    with pytest.raises(DataError, match="streets: petseg does not know its classes; --classes must be a file"):
        loading.load(data_config("streets", 64, tmp_path), "train")


def test_images_keep_their_pixels_at_their_own_size(tmp_path):
    image = picture(32, 32)
    write_data_set(tmp_path, [(png(image), png(trimap(32, 32)))])
    examples = load_examples("handmade_pets", "train", 32, str(tmp_path))
    np.testing.assert_array_equal(examples.images[0], image)
    np.testing.assert_array_equal(examples.masks[0, ..., 0], trimap(32, 32) - 1)


def test_memory_use_is_logged_before_decoding(data_dir, caplog):
    with caplog.at_level("INFO", logger="petseg"):
        load_examples("synthetic_pets", "test", 512, str(data_dir))
    assert f"test: {NUM_TEST} examples at 512 x 512 take 10 MiB of memory" in caplog.messages


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (io.BytesIO(b"this is no image"), png(trimap()), "cannot be decoded"),
        (png(picture()), io.BytesIO(b"\x89PNG but no more"), "the mask cannot be read: 16 bytes of no known format"),
        (png(picture(40, 30)), png(trimap(40, 31)), r"\(40, 30\).*\(40, 31\)"),
        (
            png(picture()),
            png(trimap(high=4)),
            r"value 4 in no class.*; must be 1 \(pet\), .*: python -m petseg.data.check --dataset=handmade",
        ),
        (png(picture()), png(trimap() - 1), "the mask holds value 0 in no class"),
    ],
    ids=["image", "mask", "sizes", "too-high", "too-low"],
)
def test_bad_examples_are_named(tmp_path, image, mask, message):
    write_data_set(tmp_path, [(png(picture()), png(trimap())), (image, mask)])
    with pytest.raises(DataError, match=rf"handmade_pets, split train, example 1.*{message}"):
        load_examples("handmade_pets", "train", 32, str(tmp_path))


@pytest.mark.parametrize(
    ("split", "message"),
    [("train[5:5]", "is empty"), ("validation", "no split validation"), ("train[:x%]", "no split")],
)
def test_bad_splits_are_named(data_dir, split, message):
    with pytest.raises(DataError, match=rf"{message}.*train \({NUM_TRAIN} examples\)"):
        load_examples("synthetic_pets", split, 32, str(data_dir))


def test_a_data_set_without_masks_is_refused(tmp_path):
    tfds.dataset_builders.store_as_tfds_dataset(
        name="only_labels",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"label": np.int64}),
        split_datasets={"train": tf.data.Dataset.from_tensor_slices({"label": np.arange(3)})},
        data_dir=str(tmp_path),
    )
    with pytest.raises(
        DataError, match=r"image_feature=image: must be an image feature .there is none.; all features: label"
    ):
        load_examples("only_labels", "train", 32, str(tmp_path))


def test_an_older_version_on_disk_is_used(tmp_path):
    write_data_set(tmp_path, [(png(picture()), png(trimap()))], name="oxford_iiit_pet", version="3.2.0")
    assert len(load_examples("oxford_iiit_pet", "train", 32, str(tmp_path))) == 1


def test_an_unreachable_data_set_is_refused_with_both_remedies(tmp_path, monkeypatch):
    def no_network(self, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
    with pytest.raises(DataError, match=r"no route to host.*--data_dir=PATH.*--dataset=synthetic_pets") as caught:
        load_examples("oxford_iiit_pet", "train", 32, str(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_unknown_data_set_is_named(tmp_path):
    with pytest.raises(DataError, match="no data set nonsense_pets"):
        load_examples("nonsense_pets", "train", 32, str(tmp_path))


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("train", "test", 0),
        ("train", "train[:5]", 5),
        ("train[:50%]", "train[50%:]", 0),
        ("train[:10]", "train[8:]", 2),
    ],
)
def test_overlap_of_splits(data_dir, first, second, shared):
    assert catalog.open_data(data_config("synthetic_pets", 32, data_dir)).overlap(first, second).examples == shared


def test_drawings_depend_on_their_seed_alone():
    first, again, other = (animal_drawing.draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.trimap, again.trimap)
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_drawings_look_like_the_data_set_they_stand_for():
    drawings = [animal_drawing.draw(np.random.default_rng([0, i])) for i in range(40)]
    assert {drawing.species for drawing in drawings} == {0, 1}
    for drawing in drawings:
        height, width, _ = drawing.image.shape
        assert height != width
        assert drawing.trimap.shape == (height, width)
        assert set(np.unique(drawing.trimap)) == {1, 2, 3}
    pixels = np.concatenate([drawing.trimap.ravel() for drawing in drawings])
    pet, background, border = (np.mean(pixels == value) for value in (1, 2, 3))
    assert pet == pytest.approx(0.30, abs=0.08)  # the shares in Oxford-IIIT Pet, roughly
    assert background == pytest.approx(0.59, abs=0.08)
    assert border == pytest.approx(0.11, abs=0.05)


def test_the_border_lies_between_pet_and_background():
    mask = np.zeros((50, 50), bool)
    mask[15:35, 15:35] = True
    trimap = animal_drawing.trimap(mask, 3)
    assert (trimap[:, 25] == [2] * 12 + [3] * 6 + [1] * 14 + [3] * 6 + [2] * 12).all()


def test_oxford_iiit_pet_has_its_known_class_shares(real_data_dir):
    examples = load_examples("oxford_iiit_pet", "test", 128, real_data_dir)
    assert len(examples) == 669
    shares = np.bincount(examples.masks.ravel(), minlength=3) / examples.masks.size
    np.testing.assert_allclose(shares, [0.300, 0.587, 0.114], atol=0.02)
