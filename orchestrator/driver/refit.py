"""Refit: when a run ends, its winner is trained once more, on the validation images too, where that is asked for."""

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.driver.models import RetrainingWatch
from orchestrator.driver.state import RunState
from orchestrator.driver.watch import GridWatch
from orchestrator.errors import BadInput
from orchestrator.plans.refit import refit_spec, refit_trial
from orchestrator.runs.checkpoints import KeepCheckpoints, delete_checkpoints
from orchestrator.runs.folder import REFIT, KeepModels
from orchestrator.runs.winner import epoch_of
from orchestrator.words import plural

if TYPE_CHECKING:
    from orchestrator.cluster.connect import Cluster


def refit_winner(state: RunState, watch: GridWatch, cluster: "Cluster | None", console: Console) -> None:
    """Make models/refit of the winner, unless it is there, or trials are still to be trained.

    cluster: None: one is started if needed. Raises BadInput where there is no winner, or it cannot be refitted.
    """
    context, run, leader = state.context, state.context.run, state.leader
    if left := [trial for trial in state.left if trial.id not in state.results]:
        console.out(f"refit: waits until {plural(len(left), 'trial')} more are trained")
        return
    if watch.stop.is_set():
        return
    if leader is None:
        raise BadInput("--refit must have a winner, and no point is ok: the board says why")
    own = next(trial for trial in state.plan.trials if trial.id == leader.trial_id)
    result, last = state.results[own.id], epoch_of(leader, state.results, context.spec).epoch
    assert result.steps_per_epoch is not None  # of a trial that is ok
    losses = [each.metrics["val_loss"] for each in result.history[:last]]
    trial = refit_trial(own, leader, result.steps_per_epoch, losses)
    steps = last * result.steps_per_epoch
    if not _is_there(state, trial.id):
        from orchestrator.cluster.connect import connect  # here, so that a finished run does not load Ray
        from orchestrator.cluster.fanout import fan_out
        from orchestrator.cluster.watch import InOrder

        console.out(f"refit: the winner again, {steps:,} steps on training and validation images")
        context = dataclasses.replace(context, spec=refit_spec(context.spec), keep=KeepModels.all)
        told = RetrainingWatch(state.results, console, "refit")
        with contextlib.nullcontext(cluster) if cluster else connect(context.spec.resources) as cluster:
            fan_out(context, cluster, InOrder([trial]), told, watch.stop, watch.kill)
        if watch.stop.is_set() or watch.kill.is_set():
            return
        if not _is_there(state, trial.id):
            raise BadInput(f"the winner could not be refitted: {told.error or 'its model was not written'}")
        state.events.tell("run.refitted", trial=trial.id, point_ids=list(trial.points), steps=steps)
        if state.keep_checkpoints is not KeepCheckpoints.all:
            delete_checkpoints(run, {trial.id})
    console.out(f"refit: {run.store.uri}/models/{REFIT}.keras; no image validates it: judge it by the winner")


def _is_there(state: RunState, trial_id: str) -> bool:
    facts = state.context.run.read_model(REFIT)
    return facts is not None and facts.trial_id == trial_id
