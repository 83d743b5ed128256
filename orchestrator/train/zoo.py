"""Zoo: small networks beside small_cnn, to compare by name. Loads Keras only when a model is built.

Each takes what small_cnn takes and returns the same, for images of any size from 8 x 8 on. dropout stands before the
classes, or before each layer that is not a convolution; l2 is on the weights of the classes alone, as with small_cnn.
What spec/own_models.py says of each is what a test counts.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

Shape = tuple[int, int, int]


def wide_cnn(input_shape: Shape, classes: int, dropout: float = 0.0, l2: float = 0.0) -> "keras.Model":
    """small_cnn with more filters, batch normalisation and a third convolution."""
    from keras import Input, layers

    image = Input(input_shape)
    x = image
    for filters in (48, 96, 192):
        x = layers.MaxPooling2D(2, padding="same")(_convolution(x, filters))
    return _classifier(image, layers.GlobalAveragePooling2D()(x), classes, dropout, l2)


def deep_cnn(input_shape: Shape, classes: int, dropout: float = 0.0, l2: float = 0.0) -> "keras.Model":
    """Eight convolutions with batch normalisation, two before each pooling."""
    from keras import Input, layers

    image = Input(input_shape)
    x = image
    for filters in (16, 32, 64, 128):
        x = _convolution(_convolution(x, filters), filters)
        x = layers.MaxPooling2D(2, padding="same")(x)
    return _classifier(image, layers.GlobalAveragePooling2D()(x), classes, dropout, l2)


def small_vgg(input_shape: Shape, classes: int, dropout: float = 0.0, l2: float = 0.0) -> "keras.Model":
    """As VGG: pairs of convolutions without normalisation, and dense layers on all that is left of the image."""
    from keras import Input, layers

    image = Input(input_shape)
    x = image
    for filters in (16, 32, 64):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_initializer="he_uniform")(x)
        x = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.Dropout(dropout)(layers.Flatten()(x))
    x = layers.Dense(128, activation="relu", kernel_initializer="he_uniform")(x)
    return _classifier(image, x, classes, dropout, l2)


def all_cnn(input_shape: Shape, classes: int, dropout: float = 0.0, l2: float = 0.0) -> "keras.Model":
    """Convolutions alone: every second one halves the image, where others pool."""
    from keras import Input, layers

    image = Input(input_shape)
    x = image
    for filters in (32, 64, 128):
        x = _convolution(_convolution(x, filters), filters, stride=2)
    return _classifier(image, layers.GlobalAveragePooling2D()(x), classes, dropout, l2)


def small_resnet(input_shape: Shape, classes: int, dropout: float = 0.0, l2: float = 0.0) -> "keras.Model":
    """Three residual blocks, as the first of the ResNets for small images."""
    from keras import Input, layers

    image = Input(input_shape)
    x = _convolution(image, 16)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        x = _residual(x, filters, stride)
    return _classifier(image, layers.GlobalAveragePooling2D()(x), classes, dropout, l2)


def large_resnet(input_shape: Shape, classes: int, dropout: float = 0.0, l2: float = 0.0) -> "keras.Model":
    """Eight residual blocks: ResNet-18 with half of its filters, without its first pooling."""
    from keras import Input, layers

    image = Input(input_shape)
    x = _convolution(image, 32, stride=2)
    for filters, stride in ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
        x = _residual(x, filters, stride)
    return _classifier(image, layers.GlobalAveragePooling2D()(x), classes, dropout, l2)


def se_resnet(input_shape: Shape, classes: int, dropout: float = 0.0, l2: float = 0.0) -> "keras.Model":
    """small_resnet that weighs the channels of each block by what is in the whole image (squeeze and excite)."""
    from keras import Input, layers

    image = Input(input_shape)
    x = _convolution(image, 16)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        x = _residual(x, filters, stride, squeeze=4)
    return _classifier(image, layers.GlobalAveragePooling2D()(x), classes, dropout, l2)


def separable_cnn(input_shape: Shape, classes: int, dropout: float = 0.0, l2: float = 0.0) -> "keras.Model":
    """As MobileNet: each convolution looks at one channel at a time, and one of 1 x 1 mixes the channels."""
    from keras import Input, layers

    image = Input(input_shape)
    x = _convolution(image, 32, stride=2)
    for filters, stride in ((64, 1), (128, 2), (128, 1), (256, 2)):
        x = layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        x = _convolution(x, filters, size=1)
    return _classifier(image, layers.GlobalAveragePooling2D()(x), classes, dropout, l2)


def small_convnext(input_shape: Shape, classes: int, dropout: float = 0.0, l2: float = 0.0) -> "keras.Model":
    """As ConvNeXt: patches, then wide depthwise convolutions and dense layers, with layer normalisation."""
    from keras import Input, layers

    image = Input(input_shape)
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Conv2D(32, 2, 2, padding="same")(image))
    for filters in (32, 64, 128):
        if filters > 32:
            x = layers.Conv2D(filters, 2, 2, padding="same")(layers.LayerNormalization(epsilon=1e-6)(x))
        y = layers.DepthwiseConv2D(7, padding="same")(x)
        y = layers.LayerNormalization(epsilon=1e-6)(y)
        y = layers.Dense(filters)(layers.Dense(4 * filters, activation="gelu")(y))
        x = layers.Add()([x, y])
    x = layers.LayerNormalization(epsilon=1e-6)(layers.GlobalAveragePooling2D()(x))
    return _classifier(image, x, classes, dropout, l2)


def mlp(input_shape: Shape, classes: int, dropout: float = 0.0, l2: float = 0.0) -> "keras.Model":
    """Two dense layers on the pixels, which knows nothing of images: what every other network should beat."""
    from keras import Input, layers

    image = Input(input_shape)
    x = layers.Flatten()(image)
    for _ in range(2):
        x = layers.Dropout(dropout)(layers.Dense(128, activation="relu")(x))
    return _classifier(image, x, classes, 0.0, l2)


def _convolution(x: Any, filters: int, stride: int = 1, size: int = 3) -> Any:
    """A convolution, batch normalisation and ReLU."""
    from keras import layers

    x = layers.Conv2D(filters, size, stride, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))  # 0.99 is slow where an epoch has 30 steps


def _residual(x: Any, filters: int, stride: int, squeeze: int = 0) -> Any:
    """Two convolutions beside a short cut. squeeze: weigh the channels, through so many times fewer; 0: do not."""
    from keras import layers

    y = _convolution(x, filters, stride)
    y = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(y)
    y = layers.BatchNormalization(momentum=0.9)(y)
    if squeeze:
        z = layers.GlobalAveragePooling2D(keepdims=True)(y)
        z = layers.Dense(filters, activation="sigmoid")(layers.Dense(filters // squeeze, activation="relu")(z))
        y = layers.Multiply()([y, z])
    if stride > 1 or x.shape[-1] != filters:
        x = layers.Conv2D(filters, 1, stride, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU()(layers.Add()([x, y]))


def _classifier(image: Any, x: Any, classes: int, dropout: float, l2: float) -> "keras.Model":
    """The model that ends in dropout and the classes. x: (batch, features)."""
    from keras import Model, layers, regularizers

    x = layers.Dropout(dropout)(x)
    units, activation = (1, "sigmoid") if classes == 2 else (classes, "softmax")
    x = layers.Dense(units, activation=activation, kernel_regularizer=regularizers.L2(l2), dtype="float32")(x)
    return Model(image, x)
