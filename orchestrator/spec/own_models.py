"""Own models: what is known of the package's networks for images without loading Keras. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OwnNetwork:
    """What a network does for one image of 64 x 64; the first two figures grow with the pixels.

    Attributes:
        gmacs: Multiply-adds in 10^9, counted over convolutions and matrices.
        activations: Numbers that its layers give, for each pixel of the image.
        bfloat16: How many times as fast as in float32 a step of 32 images is in bfloat16: measured on one core with
            AMX. What is depthwise, or normalised, gains little or loses.
    """

    gmacs: float
    activations: float
    bfloat16: float


OWN_MODELS: dict[str, OwnNetwork] = {
    "small_cnn": OwnNetwork(0.0196, 64.3, 2.9),
    "wide_cnn": OwnNetwork(0.0902, 273, 1.25),
    "deep_cnn": OwnNetwork(0.0537, 188, 1.4),
    "small_vgg": OwnNetwork(0.0400, 64.1, 2.7),
    "all_cnn": OwnNetwork(0.0696, 210, 1.3),
    "small_resnet": OwnNetwork(0.0500, 268, 1.15),
    "large_resnet": OwnNetwork(0.139, 248, 1.6),
    "se_resnet": OwnNetwork(0.0500, 296, 1.09),
    "separable_cnn": OwnNetwork(0.0122, 198, 0.63),
    "small_convnext": OwnNetwork(0.0326, 146, 0.71),
    "mlp": OwnNetwork(0.00159, 0.156, 0.9),
}
