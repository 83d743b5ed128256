"""Suggest: what was tried -> what to try next, by a model. The only file that imports optuna, an extra: `[suggest]`.

A fresh study with a fixed seed is told all that was tried, in the order of the plan, and then asked. Nothing of it is
kept, so the same results give the same suggestions.
"""

import importlib.util
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

from orchestrator.errors import BadInput
from orchestrator.spec.axes import canonical
from orchestrator.spec.ranges import Range
from orchestrator.spec.sampled import may_be

_SEED = 0
Status = Literal["ok", "stopped", "failed", "pending"]


@dataclass(frozen=True, slots=True)
class Tried:
    """One combination of values, without epochs.

    Attributes:
        score: Mean over its seeds; None where none is known.
        after: Epochs that the score is of.
    """

    values: Mapping[str, Any]
    status: Status
    score: float | None = None
    after: int = 0


def check_optuna() -> None:
    """Raise BadInput if optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise BadInput("--suggest needs the package optuna, which is not installed: pip install optuna")


def suggestions(
    grid: Mapping[str, list[Any] | Range], tried: Sequence[Tried], higher_is_better: bool
) -> Iterator[dict[str, Any]]:
    """Axis -> value, one combination after the other, without end; some may come twice, or be there already.

    By the tree-structured Parzen estimator, over all axes at once; what is suggested and not tried yet counts as poor,
    so that the next ones lie elsewhere. What lies outside of the grid is not learned from.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that options are new
        sampler = optuna.samplers.TPESampler(seed=_SEED, multivariate=True, constant_liar=True)
    study = optuna.create_study(sampler=sampler, direction="maximize" if higher_is_better else "minimize")
    space = {name: _distribution(values) for name, values in grid.items()}
    for each in tried:
        if all(may_be(values, each.values[name]) for name, values in grid.items()):
            study.add_trial(_told(each, grid, space))
    for _ in itertools.count():
        params = study.ask(space).params
        yield {name: _value(values, params[name]) for name, values in grid.items()}


def _told(each: Tried, grid: Mapping[str, list[Any] | Range], space: Mapping[str, "BaseDistribution"]) -> "FrozenTrial":
    from optuna.trial import TrialState, create_trial

    states = {"ok": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL", "pending": "RUNNING"}
    values = {
        name: each.values[name] if isinstance(grid[name], Range) else canonical(each.values[name]) for name in grid
    }
    return create_trial(
        state=TrialState[states[each.status]],
        value=each.score if each.status == "ok" else None,
        params=values,
        distributions=dict(space),
        intermediate_values={} if each.score is None else {each.after: each.score},
    )


def _distribution(values: list[Any] | Range) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution([canonical(value) for value in values])
    log = values.scale == "log"
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=log)
    return FloatDistribution(values.low, values.high, log=log)


def _value(values: list[Any] | Range, suggested: Any) -> Any:
    if isinstance(values, Range):
        return values.rounded(suggested)
    return next(value for value in values if canonical(value) == suggested)
