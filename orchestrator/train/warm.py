"""Warm: models of a race's legs, kept in a worker as they were built, in case their trials go on in it.

A leg goes on from its checkpoint in any case: what is saved is building the model and tracing its graphs.
"""

from collections import OrderedDict

from orchestrator.plans.trials import Trial
from orchestrator.runs.context import WorkerContext
from orchestrator.train.training import Training

_MOST, _MOST_MB = 16, 500.0  # models, and their variables
_kept: OrderedDict[tuple[str, str], Training] = OrderedDict()  # the one kept last is the last


def keep_warm(training: Training, context: WorkerContext) -> None:
    """Keep a model whose leg is over, if its trial may go on."""
    if training.trial.epochs < training.trial.milestones[-1] and not training.ended_early:
        training.loop.close()
        _kept[_key(training.trial, context)] = training
        while len(_kept) > 1 and (len(_kept) > _MOST or sum(each.size_mb for each in _kept.values()) > _MOST_MB):
            _kept.popitem(last=False)


def take_warm(trial: Trial, context: WorkerContext) -> Training | None:
    """The model of an earlier leg of this trial, to go on from its checkpoint; None if this worker has none."""
    training = _kept.pop(_key(trial, context), None)
    if training:
        training.trial = trial
    return training


def _key(trial: Trial, context: WorkerContext) -> tuple[str, str]:
    return trial.id, f"{context.run.store.uri} {context.spec.metric} {context.keep} {context.models_only}"
