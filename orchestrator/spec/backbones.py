"""Backbones: what is known of pretrained networks without loading Keras, and what they see of the images. Pure."""

import hashlib
import re
from dataclasses import dataclass

from orchestrator.spec.axes import Settings, canonical, changes_nothing
from orchestrator.spec.presets import with_preset
from orchestrator.spec.sections import Augment


@dataclass(frozen=True, slots=True)
class Application:
    """One network, as Keras 3 builds it with include_top=False.

    Attributes:
        preprocessing: What pixels it takes; see `backbone.preprocessing` in the spec.
        features: Channels of its output.
        gmacs: Multiply-adds for one image of 224 x 224, in 10^9, counted over convolutions and matrices.
        least_side: Smallest height and width in pixels.
    """

    preprocessing: str
    features: int
    gmacs: float
    least_side: int = 32


APPLICATIONS: dict[str, Application] = {
    "MobileNet": Application("-1..1", 1024, 0.568),
    "MobileNetV2": Application("-1..1", 1280, 0.299),
    "ConvNeXtBase": Application("0..255", 1024, 15.4),
    "ConvNeXtLarge": Application("0..255", 1536, 34.4),
    "ConvNeXtSmall": Application("0..255", 768, 8.68),
    "ConvNeXtTiny": Application("0..255", 768, 4.45),
    "ConvNeXtXLarge": Application("0..255", 2048, 60.9),
    "DenseNet121": Application("torch", 1024, 2.83),
    "DenseNet169": Application("torch", 1664, 3.36),
    "DenseNet201": Application("torch", 1920, 4.29),
    "EfficientNetB0": Application("0..255", 1280, 0.385),
    "EfficientNetB1": Application("0..255", 1280, 0.568),
    "EfficientNetB2": Application("0..255", 1408, 0.658),
    "EfficientNetB3": Application("0..255", 1536, 0.961),
    "EfficientNetB4": Application("0..255", 1792, 1.5),
    "EfficientNetB5": Application("0..255", 2048, 2.35),
    "EfficientNetB6": Application("0..255", 2304, 3.36),
    "EfficientNetB7": Application("0..255", 2560, 5.17),
    "EfficientNetV2B0": Application("0..255", 1280, 0.717),
    "EfficientNetV2B1": Application("0..255", 1280, 1.01),
    "EfficientNetV2B2": Application("0..255", 1408, 1.17),
    "EfficientNetV2B3": Application("0..255", 1536, 1.61),
    "EfficientNetV2L": Application("0..255", 1280, 12.2),
    "EfficientNetV2M": Application("0..255", 1280, 5.36),
    "EfficientNetV2S": Application("0..255", 1280, 2.85),
    "InceptionResNetV2": Application("-1..1", 1536, 6.47, 75),
    "InceptionV3": Application("-1..1", 2048, 2.84, 75),
    "MobileNetV3Large": Application("0..255", 960, 0.214),
    "MobileNetV3Small": Application("0..255", 576, 0.0549),
    "NASNetLarge": Application("-1..1", 4032, 10.3),
    "NASNetMobile": Application("-1..1", 1056, 0.563),
    "ResNet101": Application("caffe", 2048, 7.57),
    "ResNet101V2": Application("-1..1", 2048, 7.19),
    "ResNet152": Application("caffe", 2048, 11.3),
    "ResNet152V2": Application("-1..1", 2048, 10.9),
    "ResNet50": Application("caffe", 2048, 3.86),
    "ResNet50V2": Application("-1..1", 2048, 3.48),
    "VGG16": Application("caffe", 512, 15.3),
    "VGG19": Application("caffe", 512, 19.5),
    "Xception": Application("-1..1", 2048, 4.55, 71),
}

# How a network that takes scaled pixels is called in a .keras file, letters and digits only; the first match holds.
_NAMES_IN_FILES = (
    (r"resnet\d+v2|mobilenet|efficientnetv2|inception|xception|nasnet", "-1..1"),
    (r"resnet\d+|vgg\d+", "caffe"),
    (r"densenet|convnext|efficientnet", "torch"),
)


@dataclass(frozen=True, slots=True)
class Pretrained:
    """What is known of one backbone of a spec.

    Attributes:
        identity: What stands for its weights in the ids of trials: for a file, its SHA-256 in hex.
        preprocessing: What pixels it takes, never `auto`.
        says: Why it is taken for such pixels, for a person to read.
        features: Channels of its output; None where only Keras can say.
        gmacs: See Application; of a file, a guess from its size.
        least_side: Smallest height and width in pixels, as far as it is known.
    """

    identity: str
    preprocessing: str
    says: str
    features: int | None
    gmacs: float
    least_side: int = 1


VALIDATION_DRAW = 2**31 - 1  # in place of the epoch, so that augmented validation is the same in every epoch
_FORMAT = 1  # raise it whenever the same image would get other features


@dataclass(frozen=True, slots=True)
class View:
    """One version of every image.

    Attributes:
        id: 32 hex digits of SHA-256 over everything that decides its features.
        draw: Which random changes it has, in place of an epoch; None: it is the images themselves.
    """

    id: str
    draw: int | None


def is_file(name: str) -> bool:
    """Whether a backbone's name is that of a .keras file, and not of a network of keras.applications."""
    return name.endswith(".keras")


def views(settings: Settings, pretrained: Pretrained, index_digest: str) -> tuple[View, ...]:
    """The views that a trial with these settings needs: those that it trains on, and last the one that it validates on.

    The first view is the images themselves. The random changes of the others do not depend on a trial's seed.
    """
    backbone, data = settings.backbone, settings.data
    assert backbone is not None
    augments = changes(settings.augment)
    plain = [_FORMAT, index_digest, data.image_size, data.resize, pretrained.identity, pretrained.preprocessing]
    plain += [backbone.layer, backbone.pooling]
    augmented = {
        name: value
        for name, value in settings.augment.model_dump(exclude={"validation", "preset", "mixup", "cutmix"}).items()
        if not changes_nothing(f"augment.{name}", canonical(value))
    }
    plain += ["exif"] if data.exif == "apply" else []  # without it as it was before there was a choice

    def view(draw: int | None) -> View:
        changed = [] if draw is None else [draw, augmented]
        return View(hashlib.sha256(canonical([*plain, *changed]).encode()).hexdigest()[:32], draw)

    training = [view(None), *(view(draw) for draw in range(1, backbone.views if augments else 1))]
    return (*training, view(VALIDATION_DRAW) if augments and settings.augment.validation else training[0])


def changes(augment: Augment) -> bool:
    """Whether it changes images at all, each alone."""
    kept = {"validation": False, "fill": "nearest", "mixup": 0.0, "cutmix": 0.0, "preset": "none"}
    return with_preset(augment).model_copy(update=kept) != Augment()


def shows(settings: Settings) -> bool:
    """Whether a trial with these settings ever takes images that are changed, alone or by another one."""
    backbone, augment = settings.backbone, settings.augment
    if backbone and not backbone.unfreeze:
        return changes(augment) and backbone.views > 1
    return changes(augment) or augment.mixup > 0 or augment.cutmix > 0


def preprocessing_by_name(model: str) -> str | None:
    """What pixels a network of this name takes where it does not scale them itself; None: the name says nothing."""
    plain = re.sub(r"[^a-z0-9]", "", model.lower())
    return next((mode for pattern, mode in _NAMES_IN_FILES if re.match(pattern, plain)), None)
