"""A model of the user's own: what it is asked before anything is trained, and what becomes of its file."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_trial import SPEC, work_in

from orchestrator.errors import BadInput
from orchestrator.runs.context import WorkerContext
from orchestrator.runs.folder import KeepModels
from orchestrator.spec.axes import resolve
from orchestrator.spec.code import look_in
from orchestrator.spec.reading import load_spec

Check = Callable[..., None]

PARTS = """
import keras


class Times(keras.layers.Layer):
    def __init__(self, factor=2.0, **rest):
        super().__init__(**rest)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def times(x, factor=2.0):
    return Times(factor)(x)


class Net(keras.Model):
    def __init__(self, **rest):
        super().__init__(**rest)
        self.flat, self.last = keras.layers.Flatten(), keras.layers.Dense(1, activation="sigmoid")

    def call(self, x):
        return self.last(self.flat(x))


class Stepping(Net):
    def train_step(self, data):
        return {}
"""
NETS = """
import keras
from keras import layers
from parts import Net, Stepping, times


class Forgets(layers.Layer):
    def __init__(self, factor=1.0, **rest):
        super().__init__(**rest)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return super().get_config()


class Closed(layers.Layer):
    def __init__(self, what):
        super().__init__()

    def call(self, x):
        return x


class Away(layers.Layer):
    def __init__(self, factor=1.0, **rest):
        super().__init__(**rest)
        self.factor = factor

    def call(self, x):
        return x * self.factor


class Decay(keras.regularizers.Regularizer):
    def __call__(self, x):
        return 0.1 * keras.ops.sum(x * x)

    def get_config(self):
        return {}


def local():
    @keras.saving.register_keras_serializable()
    class Local(layers.Layer):
        def call(self, x):
            return x

    return Local()


def swish_2(x):
    return x * keras.ops.sigmoid(2 * x)


def net(input_shape, classes, compile=None, **axes):
    image = keras.Input(input_shape)
    x = layers.Flatten()(layers.AveragePooling2D(7)(image))
    model = keras.Model(image, BODY)
    if compile is not None:
        model.compile(**eval(compile))
    return model


def other(input_shape, classes):
    return OTHER
"""
SIGMOID = 'layers.Dense(1, activation="sigmoid")'


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> WorkerContext:
    context, _ = work_in(tmp_path_factory.mktemp("run"))
    return dataclasses.replace(context, keep=KeepModels.best)


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: WorkerContext) -> Iterator[Check]:
    """Checks the model of a source, as the first trial of a grid on it would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the next module of that name is another
    look_in(".")

    def check(source: str, *overrides: str) -> None:
        from orchestrator.train import check

        for name, text in (("nets", source), ("parts", PARTS)):
            sys.modules.pop(name, None)
            (tmp_path / f"{name}.py").write_text(text)
        check._checked.clear()
        check.check_model(resolve(load_spec(SPEC, ["model=nets:net", *overrides]), {}), work)

    yield check
    for name in ("nets", "parts"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "body",
    [
        f"{SIGMOID}(layers.Dense(4, activation=swish_2, kernel_regularizer=Decay())(x))",
        f"{SIGMOID}(Away(3.0)(times(x, 3.0)))",
        f"{SIGMOID}(layers.Dropout(0.5)(x, training=True))",
        f"layers.Activation('linear', dtype='float32')({SIGMOID}(x))",
        f"layers.Average()([{SIGMOID}(x), {SIGMOID}(x)])",
        "keras.ops.sigmoid(layers.Dense(1)(layers.LayerNormalization()(x)))",
        "Net()(image)",
    ],
)
def test_a_model_of_ones_own_works(check: Check, body: str) -> None:
    """Functions and classes are found in its module and in those it imports; how it ends does not matter."""
    check(NETS.replace("BODY", body))


@pytest.mark.parametrize("body", ["Net()", f"keras.Sequential([layers.Flatten(), {SIGMOID}])"])
def test_a_model_without_an_input_gets_one(check: Check, body: str) -> None:
    """A subclass, or layers that do not know their input yet."""
    check(NETS.replace("OTHER", body), "model=nets:other")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (f"{SIGMOID}(Closed(object())(x))", "must be one that Keras can save: .* --export-models none$"),
        (f"{SIGMOID}(Forgets(3.0)(x))", "must say the same once it is saved and loaded, .* get_config"),
        (f"{SIGMOID}(local()(x))", "Local is not known; .* must be defined at the top of the module nets, or"),
        (f"{SIGMOID}(layers.Lambda(lambda x: x * 2)(x))", "a Lambda layer, that is code, .*; or keep no models"),
        ("layers.Dense(1, activation=lambda x: keras.ops.sigmoid(x))(x)", "a lambda or .* a function with a name"),
        ("layers.Dense(1)(x)", r'must give probabilities .*end it in keras.layers.Dense\(1, activation="sigmoid"\)'),
        (
            "layers.Dense(1, kernel_initializer='zeros')(layers.LayerNormalization()(x))",
            "must give probabilities of 2 classes",
        ),
        ("layers.Dense(1, activation='softmax')(x)", "must give probabilities of 2 classes"),
        ("layers.Dense(1, activation='relu')(x)", "must give probabilities of 2 classes"),
        (
            "layers.Dense(2, activation='softmax')(x)",
            r'got \(None, 2\): end it in keras.layers.Dense\(1, activation="si',
        ),
        ("None", "must return a keras.Model"),
    ],
)
def test_a_model_that_would_be_of_no_use_is_refused(check: Check, body: str, says: str) -> None:
    """In one line with a cure, and not after hours."""
    source = NETS.replace("BODY", body).replace("OTHER", "None")
    with pytest.raises(BadInput, match=says) as error:
        check(source, *(["model=nets:other"] if body == "None" else []))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("compiled", "says"),
    [
        ("dict(optimizer='adam', loss='binary_crossentropy', metrics=['accuracy'])", ""),
        ("dict(optimizer=keras.optimizers.Adam(0.001), loss=keras.losses.BinaryCrossentropy())", ""),
        (
            "dict(optimizer='sgd')",
            "the optimizer SGD, the learning rate 0.01: set train.optimizer to sgd, set train.learn",
        ),
        ("dict(optimizer=keras.optimizers.Adam(1e-4))", "the learning rate 0.0001: set train.learning_rate to 0.0001"),
        (
            "dict(optimizer=keras.optimizers.Adam(beta_1=0.5))",
            "beta_1=0.5: name train.optimizer and train.learning_rate",
        ),
        (
            "dict(optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 9)))",
            "the schedule CosineDecay: set train.learning_rate and train.schedule",
        ),
        ("dict(optimizer='adam', loss='mse')", "the loss mean_squared_error: leave model.compile out"),
        (
            "dict(optimizer='adam', loss=keras.losses.BinaryCrossentropy(label_smoothing=0.1))",
            "the loss BinaryCrossentropy with label_smoothing=0.1: leave",
        ),
        ("dict(optimizer='adam', metrics=['accuracy', keras.metrics.AUC(curve='PR')])", "the metric AUC: leave"),
    ],
)
def test_what_a_model_compiles_is_what_its_trials_do(check: Check, compiled: str, says: str) -> None:
    """Or it is refused, and all that would be lost is named. The spec's own optimizer and rate count."""
    source = NETS.replace("BODY", f"{SIGMOID}(x)").replace("compile=None", f'compile="{compiled}"')
    if not says:
        check(source)
        return
    with pytest.raises(BadInput) as error:
        check(source)
    assert says in str(error.value)
    if "train." in says or "rate" in says:
        check(source, "train.optimizer=sgd", "train.learning_rate=0.1")


def test_steps_of_ones_own_are_refused(check: Check) -> None:
    """No trial calls them."""
    with pytest.raises(BadInput, match="must not have a train_step of its own"):
        check(NETS.replace("OTHER", "Stepping()"), "model=nets:other")


def test_a_file_whose_module_is_not_there_says_so(check: Check, tmp_path: Path) -> None:
    """As where predict is called in another folder."""
    from orchestrator.train.model_file import load, to_bytes

    (tmp_path / "gone_parts.py").write_text(PARTS)
    import gone_parts
    import keras

    image = keras.Input((8,))
    data = to_bytes(keras.Model(image, gone_parts.times(image)))
    assert type(load(data, "m.keras", "gone_parts:times").layers[1]) is gone_parts.Times
    sys.modules.pop("gone_parts")
    (tmp_path / "gone_parts.py").unlink()
    with pytest.raises(
        BadInput, match=r"^m.keras must be a model that Keras can load: No module named 'gone_parts': call it in"
    ):
        load(data, "m.keras", "gone_parts:times")
