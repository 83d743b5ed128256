"""Schedules: which settings of a trial's optimizer count, and which epochs it shares with longer ones. Pure."""

from collections.abc import Iterator

from orchestrator.errors import BadInput
from orchestrator.spec.sections import Train

# Schedule -> the fields that it reads
READS = {
    "constant": (),
    "warmup": ("warmup_epochs",),
    "step": ("step_epochs", "decay_factor"),
    "cosine": ("warmup_epochs",),
    "plateau": ("plateau_patience", "decay_factor"),
    "wsd": ("warmup_epochs", "decay_share"),
}
PARAMETERS = tuple(dict.fromkeys(name for names in READS.values() for name in names))
DEPEND_ON_THE_END = ("cosine", "wsd")  # their rates depend on how many epochs there are
_WEIGHT_DECAY = {"adamw": 0.004}  # what Keras' optimizers do by default; others: 0
_WITH_MOMENTUM = ("sgd", "rmsprop")


def stable_epochs(train: Train, epochs: int) -> int:
    """After how many of so many epochs the rate of a wsd trial begins to fall."""
    return epochs - max(1, round(train.decay_share * epochs))


def idle_fields(train: Train) -> Iterator[str]:
    """The fields of train that change nothing with these others: those of other schedules, an optimizer's own decay."""
    yield from (name for name in PARAMETERS if name not in READS[train.schedule])
    if train.weight_decay == _WEIGHT_DECAY.get(train.optimizer, 0.0):
        yield "weight_decay"


def check_momentum(train: Train) -> None:
    """Raises BadInput where the optimizer takes no momentum."""
    if train.momentum and train.optimizer not in _WITH_MOMENTUM:
        raise BadInput(
            f"momentum must be 0 with optimizer {train.optimizer}, as only {' and '.join(_WITH_MOMENTUM)} take one, "
            f"got {train.momentum:g}: leave such points out with exclude, or set another optimizer"
        )
