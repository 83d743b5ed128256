"""Trial: one training run on one worker -> Result. Knows Keras, knows nothing of Ray.

A trial is a function of (settings, seed, data): to the bit on a CPU with one thread count, wherever it was stopped and
resumed, and whatever this process trained before.
"""

import contextlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from orchestrator.data.cache import Cache, open_cache
from orchestrator.data.pipeline import Source, shared_tensor
from orchestrator.data.stream import Encoded
from orchestrator.errors import BadInput
from orchestrator.plan.points import Trial, points_of
from orchestrator.run.context import WorkerContext
from orchestrator.run.result import Epoch, Result
from orchestrator.spec.axes import Settings, resolve
from orchestrator.spec.sections import Data
from orchestrator.store import StoreError
from orchestrator.tracking.tensorboard import write_events
from orchestrator.train.checkpoint import Checkpoint, CheckpointWriter
from orchestrator.train.device import (
    check_gpu,
    device_name,
    gpu_with_room,
    has_grown,
    peak_memory_mb,
    reset_peak_memory,
    use_device,
)
from orchestrator.train.export import Exporter
from orchestrator.train.loop import TrialImages
from orchestrator.train.training import Training
from orchestrator.words import last_line, now

__all__ = ["check_gpu", "has_grown", "run_trial", "use_device"]


def run_trial(
    trial: Trial,
    context: WorkerContext,
    ready: Callable[[dict[int, str], float], None],
    report: Callable[[Epoch], None],
    stopping: Callable[[], bool] = lambda: False,
    node: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> Result | None:
    """Train one trial, from its checkpoint if it has one; write its result into the run folder and return it.

    ready: called before the first step with what this node cannot read, row of the index -> reason, and with how many
    epochs are done, the share of one at work included.
    report: called after each epoch. node: fields of the result that say where it was trained.
    stopping: asked about once a second; where it says so, the state is written as a checkpoint and None is returned.
    say: called with a line that a person should read, from any thread.
    A failure becomes a Result with status "failed", which is not written: the next run tries it again. But BadInput
    before `ready` is raised: with such data, such a model or such a disk no trial can be trained.
    """
    facts: dict[str, Any] = {
        "trial_id": trial.id,
        "epochs": trial.milestones[-1],
        "started_at": now(),
        "node": platform.node(),
        "device": device_name(),
        **(node or {}),
    }
    reset_peak_memory()
    encoded, begun = None, False
    try:
        settings = resolve(context.spec, trial.values)
        cache = _cache(context, settings.data, say)
        encoded = _encoded(context) if cache.images is None else None
        images = _trial_images(context, settings, trial.seed, cache, encoded)
        training = Training(settings, trial, context, images)
        exporter = Exporter(training, context, say)
        _resume(training, exporter, context, say)
        begun = True
        ready(cache.bad, training.epochs_done)
        if not _train(training, exporter, _writer(training, context, say), report, stopping):
            return None
        return _save_result(training, context, facts)
    except Exception as error:  # the one boundary: whatever ends a trial becomes a row
        if isinstance(error, BadInput) and not begun:
            raise
        cause = encoded.failures.pop() if encoded and encoded.failures else error  # tf.data has an error of its own
        return Result(
            status="failed", error=last_line(cause), finished_at=now(), peak_memory_mb=peak_memory_mb(), **facts
        )
    finally:
        keras.backend.clear_session()


def _train(
    training: Training,
    exporter: Exporter,
    writer: CheckpointWriter | None,
    report: Callable[[Epoch], None],
    stopping: Callable[[], bool],
) -> bool:
    """Train to the end; False where `stopping` said so before.

    Raises Diverged, and StoreError or OSError where no checkpoint could be written for too long.
    """

    def stopped() -> bool:
        stop = stopping()
        if writer and stop:
            writer.write()
            writer.wait()
        elif writer:
            writer.write_if_due()
        return stop

    exporter.export()
    while not training.is_over:
        while training.step < training.loop.steps:
            training.take_steps()
            if stopped():
                return False
        if not training.finish_epoch(stopped):
            return False
        report(training.history[-1])
        if len(training.history) in training.trial.milestones or training.is_over:
            exporter.export()  # before the checkpoint: the models of the epochs in that lie in the run folder
            if writer:
                writer.write()
    if writer:
        writer.wait()
    return True


def _resume(training: Training, exporter: Exporter, context: WorkerContext, say: Callable[[str], None]) -> None:
    """Resume from the trial's checkpoint, if there is one. A checkpoint that cannot be used is moved to damaged/."""
    trial_id = training.trial.id
    data = context.run.read_checkpoint(trial_id)
    if data is None:
        return
    fresh = training.snapshot()
    try:
        training.resume(Checkpoint.from_bytes(data))
    except ValueError as error:
        if context.models_only:  # it belongs to a longer trial, which is done
            return
        aside = context.run.quarantine_checkpoint(trial_id)
        say(f"trial {trial_id} starts anew; its checkpoint is in {aside}: {error}")
        return
    exporter.find_written()
    if exporter.must_restart:
        training.resume(fresh)


def _writer(training: Training, context: WorkerContext, say: Callable[[str], None]) -> CheckpointWriter | None:
    """The writer of the trial's checkpoints; None if the one in the run folder is final and must stay."""
    if context.models_only:
        return None
    trial_id = training.trial.id
    return CheckpointWriter(
        training.snapshot,
        lambda data: context.run.write_checkpoint(trial_id, data),
        training.settings.train.checkpoint_every_s,
        lambda line: say(f"trial {trial_id}: {line}"),
    )


def _save_result(training: Training, context: WorkerContext, facts: Mapping[str, Any]) -> Result:
    result = Result(
        status="ok",
        history=training.history,
        digests=training.digests,
        steps_per_epoch=training.loop.steps,
        peak_memory_mb=peak_memory_mb(),
        finished_at=now(),
        **facts,
    )
    if not context.models_only:
        context.run.write_result(result)
        # the trial itself is safe by now, and events that are missing are written by the driver when the run ends
        with contextlib.suppress(StoreError, OSError):
            points = points_of(training.trial, context.spec.axes)
            write_events(context.run, points, {result.trial_id: result}, {})
    return result


_caches: dict[tuple[str, str, tuple[int, int], str, float], Cache] = {}
_sources: dict[tuple[str, str], Encoded] = {}


def _cache(context: WorkerContext, data: Data, say: Callable[[str], None]) -> Cache:
    """This node's cache, opened and verified once per worker."""
    key = (context.images.uri, context.index.digest, data.image_size, data.resize, data.cache_limit_gb)
    if key not in _caches:
        _caches[key] = open_cache(context.index, context.images, data, say)
    return _caches[key]


def _encoded(context: WorkerContext) -> Encoded:
    """The images as they lie in the store; a worker reads the shards' footers once."""
    key = (context.images.uri, context.index.digest)
    if key not in _sources:
        _sources[key] = Encoded(context.index, context.images)
    _sources[key].failures.clear()  # those of earlier trials
    return _sources[key]


def _trial_images(
    context: WorkerContext, settings: Settings, seed: int, cache: Cache, encoded: Encoded | None
) -> TrialImages:
    """The images that can be read, from the cache, or from the store where there is no cache."""
    index, classes = context.index, len(context.index.classes)
    source = Source(
        images=None if cache.images is None else shared_tensor(cache.images),
        labels=tf.constant(index.labels[:, None], tf.float32) if classes == 2 else tf.constant(index.labels, tf.int32),
        data=settings.data,
        augment=settings.augment,
        seed=seed,
        threads=context.spec.resources.cpus_per_trial,
        encoded=encoded,
    )
    on_gpu = None
    if cache.images is not None and (gpu := gpu_with_room(cache.images)):
        with tf.device(gpu):
            on_gpu = replace(source, images=tf.identity(source.images))
    readable = np.ones(len(index), bool)
    readable[list(cache.bad)] = False
    return TrialImages(
        source, on_gpu, np.flatnonzero(~index.validation & readable), np.flatnonzero(index.validation & readable)
    )
