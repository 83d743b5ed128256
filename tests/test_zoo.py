"""zoo: the package's own networks train on images of any size, and are as large as the forecast takes them to be."""

import math
from collections.abc import Iterator

import keras
import numpy as np
import pytest
from keras import layers

from orchestrator.spec.axes import resolve
from orchestrator.spec.own_models import OWN_MODELS
from orchestrator.spec.reading import load_spec
from orchestrator.train.model import build

COUNTED = (layers.Conv2D, layers.Dense)  # DepthwiseConv2D has a kernel of (height, width, channels, 1)


@pytest.fixture(autouse=True)
def _clear() -> Iterator[None]:
    yield
    keras.backend.clear_session()


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


@pytest.mark.parametrize("name", [name for name in OWN_MODELS if name != "small_cnn"])
def test_a_network_learns_the_smallest_images(name: str):
    """8 x 8, three classes, half precision, and batches of which the last has one image: the loss falls."""
    keras.utils.set_random_seed(0)
    model = built(name, 8, 3, "mixed_bfloat16")
    labels = np.arange(17) % 3
    images = np.random.default_rng(0).random((17, 8, 8, 3), np.float32) * 0.2 + labels[:, None, None, None] * 0.4
    model.compile(keras.optimizers.Adam(0.001), "sparse_categorical_crossentropy")
    losses = [model.train_on_batch(images[at : at + 8], labels[at : at + 8]) for at in (0, 8, 16, 0, 8, 0, 8, 0, 8)]
    assert losses[-1] < losses[0]
    assert model.output_shape == (None, 3)
