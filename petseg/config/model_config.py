"""Flags of the network."""

import dataclasses
from typing import Any, ClassVar

from petseg import custom_code
from petseg.config.data_config import picture_size
from petseg.config.options import SCORING, Exclusive, Group, option
from petseg.errors import ConfigError

ENCODERS = (
    "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_v2_b0", "efficientnet_v2_b1",
    "efficientnet_v2_b2", "efficientnet_v2_b3", "resnet50_v2", "convnext_tiny", "tiny",
)  # fmt: skip
KERAS_ENCODERS = (  # the models of `keras.applications`
    *(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")),
    *(f"DenseNet{depth}" for depth in (121, 169, 201)),
    *(f"EfficientNetB{size}" for size in range(8)),
    *(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")),
    *(f"ResNet{depth}{version}" for version in ("", "V2") for depth in (50, 101, 152)),
    "InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Large", "MobileNetV3Small",
    "NASNetLarge", "NASNetMobile", "VGG16", "VGG19", "Xception",
)  # fmt: skip
HUB = "hub:"  # a preset or class of keras-hub follows
# Widths with ImageNet weights; the other encoders have one width, except `tiny`.
IMAGENET_ALPHAS = {
    "mobilenet": (0.25, 0.5, 0.75, 1.0),
    "mobilenetv2": (0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
    "mobilenetv3small": (0.75, 1.0),
    "mobilenetv3large": (0.75, 1.0),
}
DECODERS = ("pix2pix", "light", "lighter", "deeplab_v3plus", "fpn", "segformer")


@dataclasses.dataclass(frozen=True)
class ModelConfig(Group):
    """The network."""

    exclusive: ClassVar[tuple[Exclusive, ...]] = (
        Exclusive(
            {"train_encoder": False, "train_encoder_from": ""}, lambda trained, first: trained and first == "none"
        ),
    )

    network: str = option(
        "",
        "your own network, `FILE.py:function` or `package.module:function`; empty: --encoder and --decoder",
        resume="fixed",
        code=SCORING,
    )
    encoder: str = option(
        "mobilenet_v2",
        "encoder; `tiny`, five strided convolutions, is for tests; Keras names such as `ResNet50`, and `hub:PRESET` or "
        "`hub:CLASS` of keras-hub, work too",
        resume="fixed",
        choices=ENCODERS,
        others={"a model of keras.applications": KERAS_ENCODERS, "hub:PRESET": (HUB,)},
        code=SCORING,
    )
    encoder_weights: str = option(
        "imagenet", "`imagenet` (downloaded by Keras), `none`, or a weights file", resume="fixed", required=True
    )
    init_from: str = option(
        "",
        "initial weights: a work directory (best checkpoint, averaged weights if any), a checkpoint, a file of "
        "--export=weights, or `pets`, the packaged model",
        resume="fixed",
    )
    encoder_alpha: float = option(1.0, "width of a MobileNet or `tiny` encoder", resume="fixed", above=0)
    train_encoder: bool = option(
        False, "also train the encoder; its batch norms stay in inference mode", resume="fixed"
    )
    train_encoder_from: str = option(
        "",
        "trained part of the encoder: `all`, `none`, or what follows a stage (`stage_2` to `stage_5`: "
        "maps of 1/2 to 1/16 of the size) or layer; empty: as --train_encoder says",
        resume="fixed",
    )
    decoder: str = option(
        "pix2pix",
        "`pix2pix`: the tutorial's; `light`: 10% of its weights and 37% of its operations; `lighter`: 6% and 14%; "
        "`deeplab_v3plus`, `fpn`, `segformer`: those of the papers; or code, `FILE.py:function`",
        resume="fixed",
        choices=DECODERS,
        code=SCORING,
    )
    batch_norm_momentum: float = option(
        0.99, "momentum of the decoder's moving statistics; lower it for short runs", resume="fixed", minimum=0, below=1
    )
    sync_batch_norm: bool = option(
        True, "decoder batch norms use statistics of the global batch, not of each replica's part"
    )
    input_scaling: str = option(
        "",
        "input range: `unit`: [0, 1]; `symmetric`: [-1, 1]; `encoder`: as its pretrained weights expect; empty: "
        "`encoder` for encoders by a name of Keras or keras-hub, else `unit`",
        resume="fixed",
        choices=("", "unit", "symmetric", "encoder"),
    )
    inner_size: str = option(
        "",
        "internal size of the network, which resizes images to it and logits back; empty: --image_size",
        unit="pixels",
        resume="fixed",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.input_scaling:  # what is stored is explicit
            object.__setattr__(self, "input_scaling", _default_scaling(self.encoder))
        if self.inner_size:
            picture_size("inner_size", self.inner_size)
        if self.network:
            self._check_network()
        if self.train_encoder and self.train_encoder_from == "none":
            raise ConfigError("--train_encoder and --train_encoder_from=none: must not be given together")
        if custom_code.is_reference(self.encoder) and self.input_scaling == "encoder":
            raise ConfigError(f"--input_scaling=encoder: must be unit or symmetric with --encoder={self.encoder}")
        alphas = IMAGENET_ALPHAS.get(self.encoder.replace("_", "").lower())
        if self.encoder_alpha != 1 and not alphas and self.encoder != "tiny":
            raise ConfigError(f"--encoder_alpha={self.encoder_alpha:g}: must be 1 with --encoder={self.encoder}")
        if self.encoder_weights == "imagenet" and not self.init_from:  # which takes precedence
            alphas = alphas or (1.0,)
            if self.encoder == "tiny" or (self.encoder.startswith(HUB) and self.encoder.endswith("Backbone")):
                raise ConfigError(f"--encoder_weights=imagenet: must be none or a file with --encoder={self.encoder}")
            if self.encoder_alpha not in alphas:
                raise ConfigError(
                    f"--encoder_alpha={self.encoder_alpha:g}: with --encoder_weights=imagenet must be one of "
                    + ", ".join(f"{alpha:g}" for alpha in alphas)
                )

    def changed(self, **changes: Any) -> "ModelConfig":
        """See `Group.changed`; another encoder has a default --input_scaling of its own."""
        if "encoder" in changes and self.input_scaling == _default_scaling(self.encoder):
            changes.setdefault("input_scaling", "")
        return super().changed(**changes)

    def _check_network(self) -> None:
        """Raises ConfigError if --network is combined with a flag that it replaces."""
        replaced = ("encoder", "encoder_alpha", "train_encoder", "train_encoder_from", "decoder", "input_scaling",
                    "batch_norm_momentum", "inner_size")  # fmt: skip
        given, undone = [], []
        for field in dataclasses.fields(self):
            default = field.default if field.name != "input_scaling" else _default_scaling(self.encoder)
            if field.name in replaced and (value := getattr(self, field.name)) != default:
                given.append(f"--{field.name}={value}")
                undone.append(f"--{field.name}={str(field.default).lower()}")
        if given:
            raise ConfigError(
                f"{', '.join(given)}: must not be given with --network, which replaces the encoder and decoder; "
                f"after a --preset, {' '.join(undone)}"
            )

    def working_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width at which the network works, in pixels, for an image size."""
        return picture_size("inner_size", self.inner_size) if self.inner_size else image_size

    @property
    def first_trained(self) -> str:
        """First trained part of the encoder: "all", "none", a stage or a layer."""
        return self.train_encoder_from or ("all" if self.train_encoder else "none")


def _default_scaling(encoder: str) -> str:
    return "encoder" if encoder in KERAS_ENCODERS or encoder.startswith(HUB) else "unit"
