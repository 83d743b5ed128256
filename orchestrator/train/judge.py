"""Judge: what the winner of a run says of the test images, which nothing was trained on or chosen by."""

import numpy as np
import tensorflow as tf

from orchestrator.data.pipeline import view_batches
from orchestrator.errors import BadInput
from orchestrator.runs.context import Reporter, WorkerContext
from orchestrator.runs.folder import BEST, WEIGHTS
from orchestrator.spec.axes import resolve
from orchestrator.train.export import judged_file
from orchestrator.train.feeds import VALIDATION_BATCH
from orchestrator.train.inputs import open_source
from orchestrator.train.model import class_probabilities
from orchestrator.train.model_file import load


def judge_test_images(context: WorkerContext) -> bytes:
    """Path, label, probabilities and the rest of each test image that can be read: see export.judged_file.

    The images are prepared as in training, but never augmented. Raises BadInput and StoreError.
    """
    facts, run = context.run.read_model(BEST), context.run
    if facts is None:
        raise BadInput(f"{run.store.uri} must hold models/{BEST}.keras, and has none")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.values.items()}
    settings = resolve(context.spec, {name: value for name, value in values.items() if name != "epochs"})
    source, cache = open_source(context, settings, facts.seed, Reporter())
    rows = np.flatnonzero(context.index.tests & context.index.readable(cache.bad))
    model = load(run.store.read(f"models/{BEST}.keras"), f"{run.store.uri}/models/{BEST}.keras", settings.model)

    @tf.function(reduce_retracing=True)
    def infer(images: tf.Tensor) -> tf.Tensor:
        return tf.cast(model(images, training=False), tf.float32)

    outputs = [infer(images).numpy() for images, _ in view_batches(source, rows, VALIDATION_BATCH, None)]
    return judged_file(
        context.index, source, rows, class_probabilities(np.concatenate(outputs)), {WEIGHTS: facts.weights}
    )
