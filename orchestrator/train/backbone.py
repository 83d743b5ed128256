"""Backbone: a pretrained network as Keras has it, from pixels to features, and the features of many images.

Networks are built once in a process, and are never changed: who trains one gets a copy.
"""

import difflib
import os
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from orchestrator.data.arrays import locked
from orchestrator.data.backbone import WeightsFile
from orchestrator.data.stream import thread_options
from orchestrator.errors import BadInput
from orchestrator.scratch import scratch
from orchestrator.spec.backbones import Pretrained, is_file
from orchestrator.spec.sections import Backbone
from orchestrator.train.model_file import UNLOADABLE, first_line
from orchestrator.words import last_line

Extract = Callable[[tf.Tensor], tf.Tensor]
BATCH = 32  # images at a time: the same number always, so that features are the same to the bit
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB pixels in [0, 1], as torch scales them
_IN_CLASSIFIERS = (
    keras.layers.Dense,
    keras.layers.Conv2D,
    keras.layers.Reshape,
    keras.layers.Flatten,
    keras.layers.Dropout,
    keras.layers.Activation,
)
_TO_BGR = "to_bgr"
_CAFFE_MEAN = (103.939, 116.779, 123.68)  # of its BGR pixels in 0..255


def load_extractor(
    backbone: Backbone, pretrained: Pretrained, file: WeightsFile | None, image_size: tuple[int, int]
) -> keras.Model:
    """The network from pixels in [0, 1], (batch, height, width, 3), to features, (batch, width) float32.

    Nothing in it is trainable, and it says the same in training as otherwise. file: of its weights; None: Keras fetches
    them. Raises BadInput where it cannot be had.
    """
    name = backbone.name
    network = _cut(_network(backbone, file, image_size), backbone.layer, name)
    if len(network.inputs) != 1 or len(network.outputs) != 1 or len(network.output.shape) not in (2, 4):
        shapes = [tuple(each.shape) for each in network.outputs]
        raise BadInput(
            f"backbone {name} must take one image and give one feature map (height, width, channels) or vector, and "
            f"gives {', '.join(map(str, shapes))}: choose another backbone.layer"
        )
    network.trainable = False
    pixels = keras.Input((*image_size, 3))
    x = _preprocess(pixels, pretrained.preprocessing)
    x = network(x, training=False)
    if len(x.shape) == 4:
        pools = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}
        x = pools.get(backbone.pooling, keras.layers.Flatten)()(x)
    x = keras.layers.Activation("linear", dtype="float32")(x)
    if x.shape[1] is None:
        raise BadInput(f"backbone {name} must give as many features for each image, and does not say how many")
    return keras.Model(pixels, x, trainable=False, name="backbone")


def _network(backbone: Backbone, file: WeightsFile | None, image_size: tuple[int, int]) -> keras.Model:
    if file and is_file(backbone.name):
        return _for_size(_load(file, backbone.name), backbone.name, image_size)
    network = _application(backbone.name, image_size)
    if file is None:
        return _with_imagenet(backbone.name, image_size)
    with scratch() as folder:
        path = folder / os.path.basename(file.key)
        path.write_bytes(file.read())
        try:
            network.load_weights(path)
        except UNLOADABLE as error:
            raise BadInput(
                f"backbone.weights must hold the weights of {backbone.name} without its classifier, and "
                f"{backbone.weights} does not fit: {first_line(error)[:200]}"
            ) from None
    if backbone.name.startswith("EfficientNetB"):
        _scale_as_imagenet(network)
    return network


def _application(name: str, image_size: tuple[int, int]) -> keras.Model:
    """The network of that name with random weights. Raises BadInput where the images are too small for it."""
    try:
        return getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(*image_size, 3))
    except ValueError as error:
        raise BadInput(f"backbone {name} must fit data.image_size {[*image_size]}: {last_line(error)[:200]}") from None


def _with_imagenet(name: str, image_size: tuple[int, int]) -> keras.Model:
    """The same with the weights that Keras fetches. Raises BadInput where it cannot."""
    try:
        # Keras writes downloads straight to their final names: two processes would break each other's
        with locked("weights"):
            return getattr(keras.applications, name)(
                include_top=False, weights="imagenet", input_shape=(*image_size, 3)
            )
    except Exception as error:  # whatever a download met with: Keras makes plain Exceptions of some of it
        raise BadInput(
            f"backbone {name} must have its ImageNet weights, and they cannot be fetched ({last_line(error)[:300]}): "
            f"fetch that file where there is a network, and set backbone.weights to it"
        ) from None


def _scale_as_imagenet(network: keras.Model) -> None:
    """Keras scales the pixels of EfficientNetB0 to B7 once more, but only where it fetches the weights itself."""
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization) and np.any(np.array(layer.adapt_mean)):
            layer.adapt_variance.assign(np.array(layer.adapt_variance) * np.array(_STD))
            layer.finalize_state()


def _load(file: WeightsFile, name: str) -> keras.Model:
    with scratch() as folder:
        path = folder / "backbone.keras"
        path.write_bytes(file.read())
        try:
            network = keras.saving.load_model(path, compile=False, safe_mode=True)
        except UNLOADABLE as error:
            raise BadInput(
                f"backbone {name} must be a model that Keras can load without running code from it: "
                f"{last_line(error)[:300]}"
            ) from None
    if not isinstance(network, keras.Model) or not getattr(network, "inputs", None):
        raise BadInput(f"backbone {name} must be a Functional or Sequential model, got {type(network).__name__}")
    # a Sequential one is not called as it is loaded, and does not know its output then
    return keras.Model(network.inputs[0], network.outputs[0]) if isinstance(network, keras.Sequential) else network


def _for_size(network: keras.Model, name: str, image_size: tuple[int, int]) -> keras.Model:
    """The same network for images of this size. Raises BadInput where it takes images of another size only."""
    shape = tuple(network.inputs[0].shape[1:])
    if len(shape) != 3 or shape[2] not in (3, None):
        raise BadInput(f"backbone {name} must take colour images (height, width, 3), and takes {shape}")
    if shape[:2] == image_size:
        return network
    try:
        fitted = keras.models.clone_model(network, input_tensors=keras.Input((*image_size, 3)))
        fitted.set_weights(network.get_weights())
    except UNLOADABLE:  # whatever its layers say of shapes that do not fit
        raise BadInput(
            f"backbone {name} takes images of {shape[0]}x{shape[1]} only: set data.image_size to {[*shape[:2]]}"
        ) from None
    return fitted


def _cut(network: keras.Model, layer: str | None, name: str) -> keras.Model:
    """The network up to the layer; None: up to the last one before its classifier, if it has one."""
    if layer is not None:
        names = [each.name for each in network.layers]
        if layer not in names:
            close = difflib.get_close_matches(layer, names, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise BadInput(
                f"backbone.layer must be a layer of {name}, got {layer!r}{hint}; its last ones are "
                f"{', '.join(names[-5:])}"
            )
        return keras.Model(network.inputs, network.get_layer(layer).output)
    last = network.layers[-1]
    if isinstance(last, keras.Model):  # as in models that this program exports
        fed = keras.Operation.input.fget(last)  # last.input is that of its own graph
        return keras.Model(network.inputs, _cut(last, None, name)(fed))
    activation = getattr(getattr(last, "activation", None), "__name__", "")
    is_score = isinstance(last, keras.layers.Dense) and last.units == 1
    if not (isinstance(last, keras.layers.Softmax) or activation in ("softmax", "sigmoid") or is_score):
        return network
    while True:  # up to the matrix before the softmax: in MobileNet, a convolution and a Reshape are between
        network = keras.Model(network.inputs, last.input)
        if isinstance(last, keras.layers.Dense | keras.layers.Conv2D):
            return network
        last = network.layers[-1]
        if not isinstance(last, _IN_CLASSIFIERS):
            return network


def _preprocess(pixels: Any, mode: str) -> Any:
    """Pixels in [0, 1] as the network takes them, by layers that a .keras file can hold without code."""
    if mode == "-1..1":
        return keras.layers.Rescaling(2.0, offset=-1.0)(pixels)
    if mode == "0..255":
        return keras.layers.Rescaling(255.0)(pixels)
    if mode == "torch":
        return keras.layers.Normalization(mean=_MEAN, variance=[std**2 for std in _STD])(pixels)
    if mode == "caffe":
        to_bgr = keras.layers.Conv2D(3, 1, trainable=False, name=_TO_BGR)
        bgr = to_bgr(pixels)
        to_bgr.set_weights([255.0 * np.eye(3)[::-1].reshape(1, 1, 3, 3), -np.array(_CAFFE_MEAN)])
        return bgr
    return pixels


def compile_extractor(extractor: keras.Model) -> Extract:
    """Features of at most BATCH images; what is missing to BATCH is filled up."""

    @tf.function(autograph=False, reduce_retracing=True)
    def extract(images: tf.Tensor) -> tf.Tensor:
        count = tf.shape(images)[0]
        filled = tf.pad(images, [[0, BATCH - count], [0, 0], [0, 0], [0, 0]])
        filled = tf.ensure_shape(filled, (BATCH, *extractor.input_shape[1:]))
        return extractor(filled, training=False)[:count]

    found: Extract = extract
    return found


def make_features(extract: Extract, batches: tf.data.Dataset, threads: int) -> np.ndarray:
    """Features of all images of these batches, (images, width) float32.

    batches: of (images, anything), as data.pipeline has them, with BATCH images each; the last one may be smaller.
    threads: batches at once; each has one thread, as what several threads add up may differ in the last bit.
    """
    if tf.config.list_logical_devices("GPU"):
        return np.concatenate([extract(images).numpy() for images, _ in batches])
    chain = batches.map(lambda images, _: extract(images), num_parallel_calls=threads)
    return np.concatenate(list(chain.with_options(thread_options(threads)).as_numpy_iterator()))


def compose(extractor: keras.Model, head: keras.Model) -> keras.Model:
    """The whole model, from pixels in [0, 1] to what the head says. It shares the weights of both."""
    pixels = keras.Input(extractor.input_shape[1:])
    return keras.Model(pixels, head(extractor(pixels)))


class Branch(keras.Model):
    """The whole model while layers of its backbone are trained. The backbone is always called as outside of training.

    A functional model would not do: called with training=True, it passes that on to all that it is made of.
    """

    def __init__(self, extractor: keras.Model, head: keras.Model) -> None:
        super().__init__()
        self.extractor, self.head = extractor, head
        self(keras.Input(extractor.input_shape[1:]))

    def call(self, pixels: Any, training: bool | None = None) -> Any:
        return self.head(self.extractor(pixels, training=False), training=training)

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        """(None, model outputs)."""
        shape: tuple[int | None, ...] = self.head.output_shape
        return shape


def unfreeze(extractor: keras.Model, count: int) -> None:
    """Let the last `count` layers of the network that have weights be trained. Raises BadInput if it has fewer.

    BatchNormalization goes on to use what it has learned of the mean and the variance.
    """
    leaves = list(_leaves(extractor))
    with_weights = [layer for layer in leaves if layer.weights and layer.name != _TO_BGR]
    if count > len(with_weights):
        raise BadInput(
            f"unfreeze must be at most {len(with_weights)}, the layers of the backbone with weights, got {count}"
        )
    extractor.trainable = True
    for layer in leaves:
        layer.trainable = layer in with_weights[-count:]


def _leaves(model: keras.Model) -> Iterator[keras.Layer]:
    """Its layers, and those of the models that it holds, in their order."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        else:
            yield layer
