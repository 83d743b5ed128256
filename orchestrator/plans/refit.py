"""Refit: the trial that trains a winner once more, on its training and validation images together. Pure."""

import hashlib
from dataclasses import replace

from orchestrator.errors import BadInput
from orchestrator.plans.points import Point, Trial
from orchestrator.spec.sections import Spec


def refit_trial(trial: Trial, point: Point, steps_per_epoch: int, epoch: int) -> Trial:
    """The trial that takes as many steps as the model of this point took, which its trial has trained.

    epoch: the one whose weights are the point's model. It is also the most epochs that this trial can take, as one of
    its own epochs is longer. Raises BadInput where the trial goes on from another one.
    """
    if trial.frozen:
        raise BadInput(
            "--refit must have a winner that unfreezes nothing of its backbone, as that one goes on from another "
            "trial: leave --refit out, or exclude the points with unfreeze above 0"
        )
    steps = epoch * steps_per_epoch
    own = hashlib.sha256(f"{trial.id}\nrefit.steps={steps}".encode()).hexdigest()[:12]
    return replace(trial, id=own, milestones=(epoch,), epochs=epoch, points=(point.id,), refit_steps=steps)


def refit_spec(spec: Spec) -> Spec:
    """The spec by which it is trained: nothing validates it, so that nothing can end it early or choose its epoch."""
    train = spec.train.model_copy(update={"early_stopping": None})
    return spec.model_copy(update={"train": train, "metric": "accuracy"})
