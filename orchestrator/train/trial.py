"""Trial: one training run on one worker -> Result. Knows Keras, knows nothing of Ray.

A trial is a function of (settings, seed, data, backbone): to the bit on a CPU with one thread count, wherever it was
stopped and resumed, and whatever this process trained before.
"""

import contextlib
import functools
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from orchestrator.data.arrays import Stopped
from orchestrator.errors import BadInput
from orchestrator.plans.rates import rate_used
from orchestrator.plans.trials import Trial, points_of
from orchestrator.runs.checkpoints import forks_kept
from orchestrator.runs.context import Reporter, WorkerContext
from orchestrator.runs.result import Result, read_off
from orchestrator.spec.axes import resolve
from orchestrator.store import StoreError
from orchestrator.tracking.tensorboard import write_events
from orchestrator.train.check import check_model
from orchestrator.train.checkpoint import Checkpoint, CheckpointWriter
from orchestrator.train.device import (
    check_gpu,
    device_name,
    has_grown,
    peak_memory_mb,
    reset_peak_memory,
    use_device,
)
from orchestrator.train.export import Exporter
from orchestrator.train.graphs import keep_graphs
from orchestrator.train.inputs import open_inputs
from orchestrator.train.rates import with_rate
from orchestrator.train.samples import write_samples
from orchestrator.train.training import Training
from orchestrator.words import last_line, now, plural

__all__ = ["check_gpu", "has_grown", "run_trial", "use_device"]


def run_trial(
    trial: Trial, context: WorkerContext, reporter: Reporter | None = None, node: Mapping[str, Any] | None = None
) -> Result | None:
    """Train one trial, from its checkpoint if it has one; write its result into the run folder and return it.

    node: fields of the result that say where it was trained.
    Where the reporter asks to stop, the state is written as a checkpoint and None is returned.
    A failure becomes a Result with status "failed", which is not written: the next run tries it again. The milestones
    reached before have a result of their own. But BadInput before `reporter.ready` is raised: with such data, such a
    model or such a disk no trial can be trained.
    """
    reporter = reporter or Reporter()
    facts: dict[str, Any] = {
        "trial_id": trial.id,
        "epochs": trial.epochs,
        "started_at": now(),
        "node": platform.node(),
        "device": device_name(),
        **(node or {}),
    }
    reset_peak_memory()
    encoded, begun, is_kept = None, False, False
    try:
        named = resolve(context.spec, trial.values)
        check_model(named, context)
        settings = with_rate(named, trial, context, reporter)
        facts["rate_used"] = rate_used(named, settings)
        images, cache = open_inputs(context, settings, trial, reporter)
        encoded = images.source.encoded
        training = Training(settings, trial, context, images)
        exporter = Exporter(training, context, reporter.say)
        resumed = _resume(training, exporter, context, reporter.say)
        if trial.frozen and not resumed:
            _start_from_frozen(training, trial.frozen, context, reporter)
        begun = True
        reporter.ready(cache.bad, training.epochs_done)
        with contextlib.suppress(StoreError, OSError, BadInput):  # a picture is no reason not to train
            write_samples(context, images.source)
        writer = _writer(training, context, reporter.say)
        save_reached = functools.partial(_save_reached, training, context, facts, reporter)
        save_fork = functools.partial(_save_fork, training, context, reporter.say)
        _train(training, exporter, writer, reporter, save_reached, save_fork)
        result = _save_result(training, context, facts)
        keep_graphs(training.graphs)
        is_kept = True
        return result
    except Stopped:
        return None
    except Exception as error:  # the one boundary: whatever ends a trial becomes a row
        if isinstance(error, BadInput) and not begun:
            raise
        cause = encoded.failures.pop() if encoded and encoded.failures else error  # tf.data has an error of its own
        return Result(
            status="failed", error=last_line(cause), finished_at=now(), peak_memory_mb=peak_memory_mb(), **facts
        )
    finally:
        if not is_kept:
            keras.backend.clear_session()


def _train(
    training: Training,
    exporter: Exporter,
    writer: CheckpointWriter | None,
    reporter: Reporter,
    save_reached: Callable[[], None],
    save_fork: Callable[[], None],
) -> None:
    """Train to the end. save_reached: called at each milestone but the last. save_fork: called after each epoch.

    Raises Stopped where the reporter asks to stop, Diverged, and StoreError or OSError where no checkpoint could be
    written for too long.
    """

    def stopped() -> bool:
        stop = reporter.stopping()
        if writer and stop:
            writer.write()
            writer.wait()
        elif writer:
            writer.write_if_due()
        return stop

    exporter.export()
    save_reached()  # a checkpoint of before may lie behind one
    while not training.is_over:
        _train_epoch(training, stopped)
        save_fork()
        reporter.epoch(training.history[-1])
        if len(training.history) in training.trial.milestones or training.is_over:
            exporter.export()  # before the checkpoint: the models of the epochs in that lie in the run folder
            save_reached()
            if writer and training.is_over:
                writer.write_last()
            elif writer:
                writer.write()


def _train_epoch(training: Training, stopped: Callable[[], bool]) -> None:
    """Train to the end of the epoch at work. Raises Stopped where `stopped`, asked once a second, says so."""
    while training.step < training.loop.steps_of(len(training.history)):
        training.take_steps()
        if stopped():
            raise Stopped
    if not training.finish_epoch(stopped):
        raise Stopped


def _start_from_frozen(training: Training, frozen: str, context: WorkerContext, reporter: Reporter) -> None:
    """Give the head the weights that it has when the trial `frozen` is over, which is the same but unfreezes nothing.

    They are in its checkpoint, if it was trained for just as long; otherwise it is trained here, which takes seconds.
    """
    settings = training.settings
    assert settings.backbone is not None
    still = replace(settings, backbone=settings.backbone.model_copy(update={"unfreeze": 0}))
    trial = replace(training.trial, id=frozen, frozen=None).leg(training.trial.milestones[-1])
    images, _ = open_inputs(context, still, trial, reporter)
    # what ranks the points of a run may change, and decides which weights a checkpoint calls the best
    spec = context.spec.model_copy(update={"metric": "val_loss"})
    own = Training(still, trial, replace(context, spec=spec), images)
    fresh = own.snapshot()
    with contextlib.suppress(ValueError):  # there is none, or it is damaged
        own.resume(Checkpoint.from_bytes(context.run.read_checkpoint(frozen) or b""))
    if len(own.history) > trial.epochs:
        own.resume(fresh)
    if own.best and own.restores_best and own.best.epoch != read_off(own.history, True).epoch:
        own.resume(fresh)
    while not own.is_over:
        _train_epoch(own, reporter.stopping)
    with own.averaged():
        weights = own.best.weights if own.best and own.restores_best else [np.array(v) for v in own.weights]
    for variable, value in zip(training.head.variables, weights, strict=True):
        variable.assign(value)


def _resume(training: Training, exporter: Exporter, context: WorkerContext, say: Callable[[str], None]) -> bool:
    """Resume from the trial's checkpoint, or else from where it leaves the part that it shares with others.

    Returns whether training goes on from there, and not from the start.
    """
    stable = training.trial.stable
    forks = forks_kept(context.run, stable.id, stable.until) if stable else ()
    names = [training.trial.id, *(f"{stable.id}/{epochs}" for epochs in forks if stable)]
    return any(_resume_from(name, training, exporter, context, say) for name in names)


def _resume_from(
    name: str, training: Training, exporter: Exporter, context: WorkerContext, say: Callable[[str], None]
) -> bool:
    """Resume from a checkpoint, if it is there. One that cannot be used is moved to damaged/."""
    data = context.run.read_checkpoint(name)
    if data is None:
        return False
    fresh = training.snapshot()
    try:
        saved = Checkpoint.from_bytes(data)
        if context.models_only and len(saved.state.history) > training.trial.epochs:  # those weights are gone
            return False
        training.resume(saved)
    except ValueError as error:
        if context.models_only:
            return False
        aside = context.run.quarantine_checkpoint(name)
        say(f"trial {training.trial.id} starts anew; its checkpoint is in {aside}: {error}")
        return False
    exporter.find_written()
    restarts = exporter.must_restart
    if restarts:
        training.resume(fresh)
    return not restarts


def _save_fork(training: Training, context: WorkerContext, say: Callable[[str], None]) -> None:
    """Keep the state where other trials leave the part that they share with this one."""
    stable, epochs = training.trial.stable, len(training.history)
    if context.models_only or stable is None or epochs not in stable.forks:
        return
    try:
        context.run.write_checkpoint(f"{stable.id}/{epochs}", training.snapshot().to_bytes())
    except (StoreError, OSError) as error:  # training goes on: the others train this part themselves
        say(f"trial {training.trial.id}: its state after {plural(epochs, 'epoch')} is not kept: {error}")


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


def _save_reached(training: Training, context: WorkerContext, facts: Mapping[str, Any], reporter: Reporter) -> None:
    """Write what a trial that goes on has reached, and tell of it: whatever ends it later, these points are ok."""
    reached = [milestone for milestone in training.trial.milestones if milestone <= len(training.history)]
    if context.models_only or training.is_over or not reached:
        return
    result = _result(training, facts, reached[-1])
    try:
        context.run.write_result(result)
    except (StoreError, OSError) as error:  # training goes on: the next one has these points too
        reporter.say(f"trial {training.trial.id}: no result written after {plural(reached[-1], 'epoch')}: {error}")
    reporter.reached(result)


def _save_result(training: Training, context: WorkerContext, facts: Mapping[str, Any]) -> Result:
    trial = training.trial
    epochs = trial.epochs  # its checkpoint may be of a longer trial
    if training.ended_early and len(training.history) <= epochs:
        epochs = trial.milestones[-1]  # there is no more to come
    result = _result(training, facts, epochs)
    if not context.models_only:
        context.run.write_result(result)
        if trial.refit:  # no point is read off it
            return result
        # the trial itself is safe by now, and events that are missing are written by the driver when the run ends
        with contextlib.suppress(StoreError, OSError):
            points = [point for point in points_of(trial, context.spec.axes) if point.epochs <= epochs]
            write_events(context.run, points, {result.trial_id: result}, {})
    return result


def _result(training: Training, facts: Mapping[str, Any], epochs: int) -> Result:
    """The result after so many epochs, of which all there are were trained."""
    facts = {**facts, "epochs": epochs}
    return Result(
        status="ok",
        history=training.history[:epochs],
        digests={epoch: digest for epoch, digest in training.digests.items() if epoch <= epochs},
        right={epoch: right for epoch, right in training.tally.kept.items() if epoch <= epochs},
        steps_per_epoch=training.loop.steps,
        parameters=training.parameters,
        validation_images=len(training.images.validation_rows),
        peak_memory_mb=peak_memory_mb(),
        finished_at=now(),
        **facts,
    )
