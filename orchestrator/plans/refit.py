"""Refit: the trial that trains a winner once more, on its training and validation images together. Pure."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.errors import BadInput
from orchestrator.plans.trials import Point, Refit, Trial
from orchestrator.spec.sections import Spec


def refit_trial(trial: Trial, point: Point, steps_per_epoch: int, val_losses: Sequence[float]) -> Trial:
    """The trial that takes as many steps as the model of this point took, at the same learning rates.

    trial: the point's, with steps_per_epoch. val_losses: of its epochs up to the one whose weights are the model. The
    refit takes as many epochs at most, as one of its own is longer. Raises BadInput where the trial unfreezes layers.
    """
    if trial.frozen:
        raise BadInput(
            "--refit must have a winner that unfreezes nothing of its backbone, as that one goes on from another "
            "trial: leave --refit out, or exclude the points with unfreeze above 0"
        )
    epoch = len(val_losses)
    refit = Refit(epoch * steps_per_epoch, steps_per_epoch, trial.milestones[-1], tuple(val_losses))
    own = hashlib.sha256(f"{trial.id}\nrefit.steps={refit.steps}".encode()).hexdigest()[:12]
    return replace(trial, id=own, milestones=(epoch,), epochs=epoch, points=(point.id,), stable=None, refit=refit)


def refit_spec(spec: Spec) -> Spec:
    """The spec by which it is trained: nothing validates it, so that nothing can end it early or choose its epoch."""
    train = spec.train.model_copy(update={"early_stopping": None})
    return spec.model_copy(update={"train": train, "metric": "accuracy"})
