"""Graphs: a model, its optimizer and its loop, with all that TensorFlow traced of them, kept from trial to trial.

Tracing takes longer than many a trial. What was traced for one serves every other trial in this worker that differs
only in its seed, in how long it is trained, or in numbers that the graphs read from variables. It begins with the
values of a model of its own, and ends with the same weights, to the bit, as in a fresh worker.
"""

import gc
import hashlib
import json
import math
import random
from collections import OrderedDict

import keras
import numpy as np
from keras.src.utils import naming

from orchestrator.data.weights import class_weights
from orchestrator.plans.trials import Trial
from orchestrator.runs.context import WorkerContext
from orchestrator.spec.axes import Settings, canonical
from orchestrator.spec.code import BUILT_IN
from orchestrator.train.backbone import Branch, unfreeze
from orchestrator.train.dials import Dials, all_alike, dial_values
from orchestrator.train.inputs import copies_on_gpu, new_extractor
from orchestrator.train.loop import Loop, TrialImages
from orchestrator.train.model import build
from orchestrator.train.model_file import UNLOADABLE
from orchestrator.train.optimizers import make_optimizer

_MOST, _MOST_MB = 16, 500.0  # kept at once, and what their variables take
# fields of `train` that shape no graph: they are read from variables, or by Python between two epochs
_SHAPE_NOTHING = {
    *("epochs", "early_stopping", "checkpoint_every_s", "momentum", "weight_decay", "clip_norm"),
    *("learning_rate", "lr_scale", "lr_base_batch"),
    *("schedule", "warmup_epochs", "step_epochs", "decay_factor", "plateau_patience"),
}
_kept: OrderedDict[str, "Graphs"] = OrderedDict()  # by shape; the one kept last is the last


class Graphs:
    """What trials of one shape are trained with, one after the other.

    Attributes:
        shape: What decides the graphs.
        model: What is trained.
        head: The part of it that is trained on features, where it has a backbone; otherwise the whole model.
        optimizer: What changes it.
        loop: What trains and validates it.
        variables: The model's, without those of a backbone that nothing changes.
        copies: The images or features on the GPU that they were traced with, if any.
    """

    def __init__(
        self,
        shape: str,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        images: TrialImages,
        settings: Settings,
        weights: np.ndarray | None,
    ) -> None:
        """settings: of the first of these trials. weights: as training_step takes."""
        self.shape, self.model, self.optimizer = shape, model, optimizer
        self.copies = copies_on_gpu()
        self.head = model.head if isinstance(model, Branch) else model
        self._dials = Dials(model, optimizer)
        optimizer.build(model.trainable_variables)
        self._unused = [np.array(variable) for variable in optimizer.variables]
        self.loop = Loop(model, optimizer, images, settings.train, weights)
        changing = {id(variable) for variable in (*self.head.variables, *model.trainable_variables)}
        self.variables = [variable for variable in model.variables if id(variable) in changing]

    @property
    def size_mb(self) -> float:
        """What the variables take of the memory, in MB (10^6 bytes)."""
        return sum(math.prod(v.shape) for v in (*self.variables, *self.optimizer.variables)) * 4 / 1e6

    def begin(self, trial: Trial, images: TrialImages, fresh: keras.Model, unused: keras.optimizers.Optimizer) -> None:
        """Train this trial from now on, from its start. fresh, unused: its own model and optimizer, for values."""
        if fresh is not self.model:
            for variable, value in zip(self.model.variables, fresh.variables, strict=True):
                variable.assign(value)
            for variable, value in zip(self.optimizer.variables, self._unused, strict=True):
                variable.assign(value)
            self.optimizer.learning_rate.assign(unused.learning_rate)
            self._dials.turn(dial_values(fresh, unused))
        self.loop.begin(images, trial)


def take_graphs(settings: Settings, trial: Trial, context: WorkerContext, images: TrialImages) -> Graphs:
    """Graphs for a trial, at its start: kept ones, where there are any of its shape. Raises BadInput.

    settings: with a number for learning_rate.
    """
    _seed(trial.seed, settings)
    naming.reset_uids()  # they are in configs
    model, optimizer = _build(settings, context, images), make_optimizer(settings.train)
    labels = context.index.labels[images.rows]
    weights = class_weights(settings.train.class_weight, context.index.classes, labels)
    shape = _shape_of(model, optimizer, settings, trial, context, images, weights)
    # or what no trial is trained on any more would stay on the GPU
    for other in [each for each, kept in _kept.items() if kept.copies is not copies_on_gpu()]:
        del _kept[other]
    graphs = _kept.pop(shape, None) or Graphs(shape, model, optimizer, images, settings, weights)
    graphs.begin(trial, images, model, optimizer)
    return graphs


def keep_graphs(graphs: Graphs) -> None:
    """Keep what a trial was trained with that is over, for others of its shape."""
    graphs.loop.close()
    _kept[graphs.shape] = graphs
    while len(_kept) > 1 and (len(_kept) > _MOST or sum(each.size_mb for each in _kept.values()) > _MOST_MB):
        _kept.popitem(last=False)
        gc.collect()  # graphs are large, and hold each other


def _seed(seed: int, settings: Settings) -> None:
    """Let Keras draw the weights of this seed."""
    if settings.model in BUILT_IN:
        random.seed(seed)  # all that these draw from
    else:  # a function of the user's may draw from NumPy and TensorFlow
        keras.utils.set_random_seed(seed)  # which lets TensorFlow forget how it runs its graphs: that takes 0.1 s


def _build(settings: Settings, context: WorkerContext, images: TrialImages) -> keras.Model:
    """The model that is trained. Raises BadInput."""
    classes, backbone, extractor = len(context.index.classes), settings.backbone, None
    shape: tuple[int, ...] = (*settings.data.image_size, 3)
    if images.features:
        shape = tuple(images.features.validation.shape[1:])
    elif backbone:
        extractor = new_extractor(context, settings)
        unfreeze(extractor, backbone.unfreeze)
        shape = tuple(extractor.output_shape[1:])
    head = build(settings, shape, classes)
    return Branch(extractor, head) if extractor else head


def _shape_of(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    settings: Settings,
    trial: Trial,
    context: WorkerContext,
    images: TrialImages,
    weights: np.ndarray | None,
) -> str:
    """What decides the graphs of a trial: all that they hold as constants, in a hash."""
    train = settings.train
    with all_alike(model, optimizer) as dials:
        config = _config_of(model)
    rows = (context.index.labels, images.rows, images.validation_rows)
    parts = [
        config or [trial.id, trial.seed, settings.model, dict(settings.model_args)],
        dials,
        train.model_dump(mode="json", exclude=_SHAPE_NOTHING),
        train.schedule == "constant",
        settings.augment.model_dump(mode="json"),
        settings.data.model_dump(mode="json"),
        settings.backbone.model_dump(mode="json") if settings.backbone else None,
        [context.images.uri, context.index.digest, list(context.index.classes)],
        [hashlib.sha256(array.tobytes()).hexdigest() for array in rows],
        None if weights is None else weights.tolist(),
    ]
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def _config_of(model: keras.Model) -> str | None:
    """All that a model is, as text; None where that is not known, as it is not all made of Keras' own parts."""
    if not type(model).__module__.startswith("keras."):
        return None
    try:
        config = json.dumps(model.get_config())
    except UNLOADABLE:  # a layer of the user's own cannot say what it is
        return None
    return None if '"registered_name": "' in config or "Lambda" in config else config
