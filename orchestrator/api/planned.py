"""Planned: what a run would train, for a person and for a program."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from orchestrator.api.tables import Table
from orchestrator.driver.lay_out import Options
from orchestrator.driver.standing import Standing, look
from orchestrator.spec.sections import Spec
from orchestrator.terminal import make_console


@dataclass(frozen=True)
class PlannedRun:
    """What would be trained. Printed, it is what `python -m orchestrator.grid --plan` says.

    Attributes:
        uri: Where the run folder is, or would be.
    """

    uri: str
    _standing: Standing = field(repr=False)

    @cached_property
    def tree(self) -> dict[str, Any]:
        """Everything as plain values, as `--plan --json` has it."""
        return self._standing.tree()

    @property
    def points(self) -> Table:
        """One row for each point: id, trial_id, seed, epochs, and its value on each axis."""
        return Table.of_rows(self.tree["points"])

    @property
    def trials(self) -> Table:
        """One row for each trial, in the order in which they start: milestones in epochs, forecast_s in seconds."""
        return Table.of_rows(self.tree["trials"])

    def __str__(self) -> str:
        return "\n".join(self._standing.lines())

    __repr__ = __str__


def make(spec: Spec, options: Options) -> PlannedRun:
    """See orchestrator.plan. Raises BadInput."""
    standing = look(spec, options, make_console())
    return PlannedRun(standing.state.context.run.store.uri, standing)
