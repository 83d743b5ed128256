"""Train every point of a hyperparameter grid exactly once, anywhere, and rank them.

    import orchestrator

    run = orchestrator.run(data="./pets", batch_size=[8, 32], epochs=[10, 20])
    run.board, run.verdict, run.best.predict("new/"), run.plot.curves()

The commands do the same: `python -m orchestrator.grid`, `leaderboard`, `predict`. Importing this loads nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.errors import BadInput

if TYPE_CHECKING:
    from orchestrator.api.opened import OpenRun
    from orchestrator.api.planned import PlannedRun

__version__ = "0.1.0"
__all__ = ["BadInput", "open_run", "plan", "run"]


def run(
    spec: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    share_epochs: bool = True,
    takeover: bool = False,
    export_models: Literal["best", "all", "none"] = "best",
    keep_checkpoints: Literal["best", "all", "none"] = "all",
    mlflow: str | None = None,
    refit: bool = False,
    **fields: Any,
) -> OpenRun:
    """Train every point of a grid once, and open the run folder. The same call again finishes what is missing.

    spec: a YAML file, or what would stand in one; None: the fields alone; where these name no data, images that come
    with the package. fields: each replaces one of the spec, as `--set` does: `data="./pets"`, `grid={...}`,
    `train={...}`, `output=...`, `name=...`; others are axes, with a list of values or one: `epochs=[10, 20]`,
    `learning_rate=0.01`. `model` may be a function, of a module or of the notebook itself.
    share_epochs, takeover, export_models, keep_checkpoints, mlflow, refit: as the options of
    `python -m orchestrator.grid`.

    In a notebook one output shows how it goes on; elsewhere lines are printed, as by the command. Points that fail are
    rows of the board. Raises BadInput for what a person can fix. Ctrl-C, or the notebook's stop, writes every trial's
    state and the tables, and then raises KeyboardInterrupt.
    """
    from orchestrator.api.arguments import read
    from orchestrator.api.running import options_of, train

    options = options_of(
        spec, export_models, keep_checkpoints, share_epochs=share_epochs, takeover=takeover, mlflow=mlflow, refit=refit
    )
    return train(read(spec, fields), options)


def plan(
    spec: str | os.PathLike[str] | Mapping[str, Any] | None = None, *, share_epochs: bool = True, **fields: Any
) -> PlannedRun:
    """What `run` would train with the same arguments, how long it takes and what it costs. Writes and trains nothing.

    Raises BadInput.
    """
    from orchestrator.api.arguments import read
    from orchestrator.api.planned import make
    from orchestrator.api.running import options_of

    return make(read(spec, fields), options_of(spec, plan_only=True, share_epochs=share_epochs))


def open_run(uri: str | os.PathLike[str]) -> OpenRun:
    """Open a run folder, on a disk or in a bucket; also one still at work. Raises BadInput where there is none."""
    from orchestrator.api.opened import OpenRun

    return OpenRun(os.fspath(uri))
