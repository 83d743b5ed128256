"""zoo: the package's own networks train on images of any size, and are as large as the forecast takes them to be."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from orchestrator.spec.axes import resolve
from orchestrator.spec.own_models import OWN_MODELS
from orchestrator.spec.reading import load_spec
from orchestrator.spec.sections import Train
from orchestrator.train.model import build
from orchestrator.train.optimizers import make_optimizer
from orchestrator.train.steps import Sums, no_sums, training_step

COUNTED = (layers.Conv2D, layers.Dense)  # DepthwiseConv2D has a kernel of (height, width, channels, 1)


def built(name: str, side: int, classes: int, precision: str = "float32") -> keras.Model:
    spec = load_spec(f"{{name: a, data: {{uri: b}}, model: {name}, grid: {{precision: [{precision}]}}}}")
    return build(resolve(spec, {"precision": precision}), (side, side, 3), classes)


@pytest.mark.parametrize("name", OWN_MODELS)
def test_a_network_does_what_the_forecast_counts(name: str):
    """Multiply-adds and activations, for an image of 64 x 64 and two classes."""
    model = built(name, 64, 2)
    work = 0
    for layer in model.layers:
        if isinstance(layer, layers.DepthwiseConv2D):
            work += math.prod(layer.output.shape[1:]) * math.prod(layer.kernel.shape[:2])
        elif isinstance(layer, COUNTED):
            work += math.prod(layer.output.shape[1:]) * math.prod(layer.kernel.shape[:-1])
    numbers = sum(math.prod(x.output.shape[1:]) for x in model.layers[1:] if not isinstance(x, layers.Flatten))
    assert OWN_MODELS[name].gmacs == pytest.approx(work / 1e9, rel=0.01)
    assert OWN_MODELS[name].activations == pytest.approx(numbers / 64**2, rel=0.01)


ALIKE = ("wide_cnn", "all_cnn", "small_vgg", "small_resnet", "large_resnet")  # of layers that others have too


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in OWN_MODELS if name != "small_cnn"],
)
def test_a_network_learns_the_smallest_images(name: str):
    """8 x 8, three classes, half precision: the loss of a batch falls, also after a batch of one image."""
    keras.utils.set_random_seed(0)
    model = built(name, 8, 3, "mixed_bfloat16")
    labels = tf.constant(np.arange(9) % 3, tf.int32)
    images = tf.random.stateless_uniform((9, 8, 8, 3), (0, 0)) * 0.2 + tf.cast(labels[:, None, None, None], tf.float32)
    sums = tf.Variable(no_sums())
    step = training_step(model, make_optimizer(Train()), sums)
    losses = []
    for size in (9, 1, 9, 9, 9):
        sums.assign(no_sums())
        step(images[:size], labels[:size])
        losses.append(Sums(*sums.numpy()).loss / size)
    assert losses[-1] < losses[0]
