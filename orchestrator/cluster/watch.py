"""Watch: what a fan-out trains, and who is told what happens."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from orchestrator.plans.trials import Trial
from orchestrator.runs.result import Epoch, Result


class Legs(Protocol):
    """What is to be trained, one leg after the other. Asked on the thread on which a Watch is told.

    Attributes:
        trials: All that legs may be of.
    """

    trials: Sequence[Trial]

    @property
    def may_grow(self) -> bool:
        """Whether the results of some legs may bring others."""

    def take(self) -> Trial | None:
        """The next leg; None while there is none."""

    def over(self) -> bool:
        """Whether there will be none any more."""


class InOrder:
    """These trials, each once."""

    may_grow = False

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials = trials
        self._left = deque(trials)

    def take(self) -> Trial | None:
        return self._left.popleft() if self._left else None

    def over(self) -> bool:
        return not self._left


class Watch(Protocol):
    """Is told what happens, in the order it happens, on one thread, which is not the one that called fan_out."""

    def started(self, trial_id: str) -> None:
        """A worker was chosen for the trial. Called again when it goes on in another worker."""

    def may_start(
        self,
        trial: Trial,
        epochs_done: float,
        unreadable: Mapping[int, str],
        node_type: str | None,
        node_share: float,
    ) -> bool:
        """Asked when a worker has opened its node's cache: whether it should train this trial. False leaves it out.

        epochs_done: trained before this worker took the trial up; a begun epoch counts in part.
        unreadable: row of the index -> reason. node_share: the fraction of the node that the trial takes, in (0, 1].
        """

    def preparing(self, trial_id: str, what: str, done: int, images: int, made: int) -> None:
        """The trial's worker makes features with the backbone `what`: those of so many images are there.

        made: how many of them it made itself, and did not find.
        """

    def ready(self, trial_id: str, epochs_done: float) -> None:
        """The worker is about to train it."""

    def refused(self, trial: Trial, why: str) -> None:
        """A worker cannot train this trial: bad data, a model that does not fit, a full disk."""

    def over(self) -> bool:
        """Asked several times a second: whether all trials should stop now."""

    def say(self, line: str) -> None:
        """A line from a worker that a person should read."""

    def epoch(self, trial_id: str, epoch: Epoch) -> None: ...

    def reached(self, result: Result) -> None:
        """The trial goes on, and has this result up to a milestone. May come again."""

    def ended(self, result: Result) -> None:
        """The trial has a result, or has failed. Trials that were stopped or left out do not end."""


class LeaveTune(BaseException):
    """Leaves Tune's loop at once, as a second Ctrl-C would. The workers end when the driver disconnects."""


class GuardedWatch:
    """Passes every call on to a watch, until `kill` is set or it is closed; calls after that raise LeaveTune."""

    def __init__(self, watch: Watch, kill: threading.Event) -> None:
        self._watch, self._kill = watch, kill
        self._calling, self._closed = threading.Lock(), False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with self._calling:
                self.check()
                return getattr(self._watch, name)(*args)

        return call

    def check(self) -> None:
        """Raises LeaveTune where calls are no longer passed on."""
        if self._kill.is_set() or self._closed:
            raise LeaveTune

    def close(self) -> None:
        """Pass nothing on from now. Waits until a call under way has returned, for five seconds at most."""
        free = self._calling.acquire(timeout=5)
        self._closed = True
        if free:
            self._calling.release()
