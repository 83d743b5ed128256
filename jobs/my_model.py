"""Your own model: separable convolutions; each block halves the image and doubles the width."""

import keras
from keras import layers


def separable(
    input_shape: tuple[int, int, int], classes: int, width: int = 16, blocks: int = 2, dropout: float = 0.0
) -> keras.Model:
    """input_shape: (height, width, 3), pixels in [0, 1]. The other arguments are axes if a spec names them."""
    image = keras.Input(input_shape)
    x = layers.Conv2D(width, 3, padding="same", activation="relu")(image)
    for block in range(blocks):
        x = layers.SeparableConv2D(width * 2**block, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(dropout)(x)
    units, activation = (1, "sigmoid") if classes == 2 else (classes, "softmax")
    return keras.Model(image, layers.Dense(units, activation=activation, dtype="float32")(x))
