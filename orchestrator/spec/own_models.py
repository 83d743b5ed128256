"""Own models: what is known of the package's networks for images without loading Keras. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OwnNetwork:
    """What a network does for one image of 64 x 64; both figures grow with the pixels.

    Attributes:
        gmacs: Multiply-adds in 10^9, counted over convolutions and matrices.
        activations: Numbers that its layers give, for each pixel of the image.
    """

    gmacs: float
    activations: float


OWN_MODELS: dict[str, OwnNetwork] = {
    "small_cnn": OwnNetwork(0.0196, 64.3),
    "wide_cnn": OwnNetwork(0.0902, 273),
    "deep_cnn": OwnNetwork(0.0537, 188),
    "small_vgg": OwnNetwork(0.0400, 64.1),
    "all_cnn": OwnNetwork(0.0696, 210),
    "small_resnet": OwnNetwork(0.0500, 268),
    "large_resnet": OwnNetwork(0.139, 248),
    "se_resnet": OwnNetwork(0.0500, 296),
    "separable_cnn": OwnNetwork(0.0122, 198),
    "small_convnext": OwnNetwork(0.0326, 146),
    "mlp": OwnNetwork(0.00159, 0.156),
}
