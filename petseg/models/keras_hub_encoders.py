"""Backbones of keras-hub as encoders: presets with pretrained weights, or classes with random ones."""

import importlib
from typing import Any

import keras

from petseg.config.model_config import HUB
from petseg.config.options import near_names
from petseg.errors import ConfigError, one_line
from petseg.models import feature_maps, pretrained_weights

# Classes that can be built without a preset, and the arguments of their smallest published size.
SMALLEST: dict[str, dict[str, Any]] = {
    "DenseNetBackbone": {"stackwise_num_repeats": [6, 12, 24, 16]},
    "MiTBackbone": {
        "layerwise_depths": [2, 2, 2, 2], "num_layers": 4, "layerwise_num_heads": [1, 2, 5, 8],
        "layerwise_sr_ratios": [8, 4, 2, 1], "max_drop_path_rate": 0.1, "layerwise_patch_sizes": [7, 3, 3, 3],
        "layerwise_strides": [4, 2, 2, 2], "hidden_dims": [32, 64, 160, 256],
    },
    "ResNetBackbone": {
        "input_conv_filters": [64], "input_conv_kernel_sizes": [7], "stackwise_num_filters": [64, 128, 256, 512],
        "stackwise_num_blocks": [2, 2, 2, 2], "stackwise_num_strides": [1, 2, 2, 2], "block_type": "basic_block",
    },
    "ViTBackbone": {"patch_size": 16, "num_layers": 12, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768},
}  # fmt: skip


@keras.saving.register_keras_serializable("petseg")
class HubEncoder(keras.Model):
    """A backbone of keras-hub with five feature maps as outputs.

    Files have the config of the backbone: those of the layers of its transformers are refused by these layers.
    Errors call it by its `name`.
    """

    def __init__(self, backbone: keras.Model, name: str = "encoder"):
        image = backbone.inputs[0]
        super().__init__(image, feature_maps.completed(_maps(name, backbone, image.shape[1:3]), image), name="encoder")
        self._backbone_config = keras.saving.serialize_keras_object(backbone)

    def get_config(self) -> dict[str, Any]:
        return {"backbone": self._backbone_config}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "HubEncoder":
        return cls(keras.saving.deserialize_keras_object(config["backbone"], custom_objects))


def build(encoder: str, image_size: tuple[int, int], channels: int, *, pretrained: bool) -> keras.Model:
    """A backbone of keras-hub as a model with five feature maps, finest first.

    Args:
      encoder: "hub:" and the name of a class, or a preset: its name, handle or folder.
      pretrained: whether to load the weights of the preset, adapted to the channels; else they are random.

    Raises:
      ConfigError: if keras-hub is missing, knows no such backbone, or has no maps of these sizes.
    """
    library, name = _library(encoder), encoder.removeprefix(HUB)
    if name in SMALLEST:
        backbone = _of_class(library, encoder, (*image_size, channels))
    elif hasattr(library.models, name):
        raise ConfigError(f"--encoder={encoder}: must be a preset of it, or one of {', '.join(SMALLEST)}")
    else:
        backbone = _of_preset(library, encoder, (*image_size, channels), pretrained and channels == 3)
        if pretrained and channels != 3:
            of_rgb = _of_preset(library, encoder, (*image_size, 3), True)
            pretrained_weights.assign(backbone, of_rgb.get_weights())
    if isinstance(backbone, library.models.MiTBackbone) and image_size[0] != image_size[1]:
        raise ConfigError(
            f"--encoder={encoder}: images of {image_size}; must be square: --inner_size=SIDE resizes them"
        )
    return HubEncoder(backbone, encoder)


def scaling(encoder: str) -> tuple[Any, Any] | None:
    """Factor and offset of pixels in [0, 255] that a preset expects; None for a class.

    Raises ConfigError if the preset has none.
    """
    library, name = _library(encoder), encoder.removeprefix(HUB)
    if hasattr(library.models, name):
        return None
    try:
        converter = library.layers.ImageConverter.from_preset(name)
    except Exception as error:
        raise ConfigError(
            f"--input_scaling=encoder: {encoder} does not say how it scales images; must be unit or symmetric "
            f"({one_line(error)})"
        ) from error
    scale, offset = (
        list(each) if isinstance(each, list | tuple) else each for each in (converter.scale, converter.offset)
    )
    return 1.0 if scale is None else scale, 0.0 if offset is None else offset


def _library(encoder: str) -> Any:
    try:
        return importlib.import_module("keras_hub")
    except Exception as error:  # also where its TensorFlow Text does not fit TensorFlow
        raise ConfigError(
            f"--encoder={encoder}: keras-hub cannot be imported; pip install -e '.[hub]' ({one_line(error)})"
        ) from error


def _of_class(library: Any, encoder: str, shape: tuple[int, ...]) -> keras.Model:
    name = encoder.removeprefix(HUB)
    try:
        return getattr(library.models, name)(**SMALLEST[name], image_shape=shape)
    except Exception as error:  # such as MiT for images of 32 pixels
        raise ConfigError(
            f"--encoder={encoder}: not for images of {shape[:2]}, which may be too small ({one_line(error)})"
        ) from error


def _of_preset(library: Any, encoder: str, shape: tuple[int, ...], pretrained: bool) -> keras.Model:
    preset = encoder.removeprefix(HUB)
    backbones = [each for name in dir(library.models) if name.endswith("Backbone")
                 for each in [getattr(library.models, name)]]  # fmt: skip
    known = sorted({preset for each in backbones for preset in each.presets})
    try:
        for argument in ("image_shape", "input_shape"):  # the latter of EfficientNet
            try:
                options = {argument: shape}
                return library.models.Backbone.from_preset(preset, load_weights=pretrained, **options)
            except TypeError:
                continue
        raise TypeError("takes no image size")
    except Exception as error:  # keras-hub and its downloads raise errors of any type
        near = "" if preset in known else near_names(preset, [*known, *SMALLEST])
        raise ConfigError(
            f"--encoder={encoder}: must be an image preset that keras-hub can load, or one of "
            f"{', '.join(SMALLEST)}{near} ({one_line(error)})"
        ) from error


def _maps(encoder: str, backbone: keras.Model, image_size: tuple[int, int]) -> dict[int, keras.KerasTensor]:
    """Maps by level: the pyramid that a backbone declares, others from its graph, or the tokens of a transformer."""
    pyramid = list(getattr(backbone, "pyramid_outputs", {}).values())
    outputs = [*pyramid, backbone.output] if isinstance(backbone.output, keras.KerasTensor) else pyramid
    level_of = feature_maps.levels(image_size)
    if any(len(each.shape) == 4 for each in outputs):
        maps = feature_maps.find(backbone, image_size)
        return maps | {level_of[size]: each for each in pyramid if (size := each.shape[1:3]) in level_of}
    patch = getattr(backbone, "patch_size", None)
    patch = patch[0] if isinstance(patch, list | tuple) else patch
    if patch not in (4, 8, 16, 32) or len(outputs[-1].shape) != 3:
        raise ConfigError(
            f"--encoder={encoder}: it has patches of {patch} pixels; must have maps or patches of 4 to 32"
        )
    grid = tuple(side // patch for side in image_size)
    tokens = outputs[-1][:, -grid[0] * grid[1] :]  # behind class tokens
    return {level_of[grid]: keras.layers.Reshape((*grid, tokens.shape[-1]), name="tokens")(tokens)}
