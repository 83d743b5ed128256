"""Running: trains a spec for a caller in Python."""

import os
from typing import Any

from orchestrator.api.opened import OpenRun
from orchestrator.driver.lay_out import Options
from orchestrator.driver.line import log_to_mlflow, train_grid
from orchestrator.errors import BadInput
from orchestrator.runs.checkpoints import KeepCheckpoints
from orchestrator.runs.folder import KeepModels
from orchestrator.spec.sections import Spec
from orchestrator.terminal import Cell, make_console


def options_of(path: object, export_models: str = "best", keep_checkpoints: str = "all", **others: Any) -> Options:
    """The options of a call, of which the spec was given as this. Raises BadInput."""
    for name, value in (("export_models", export_models), ("keep_checkpoints", keep_checkpoints)):
        if value not in (known := [each.value for each in KeepModels]):
            raise BadInput(f"{name} must be one of {', '.join(known)}, got {value!r}")
    folder = os.path.dirname(path) if isinstance(path, str | os.PathLike) else ""
    keep, checkpoints = KeepModels(export_models), KeepCheckpoints(keep_checkpoints)
    return Options(keep=keep, keep_checkpoints=checkpoints, folder=str(folder) or ".", **others)


def train(spec: Spec, options: Options) -> OpenRun:
    """See orchestrator.run."""
    console = make_console()
    state, watch = train_grid(spec, options, console)
    uri = state.context.run.store.uri
    if watch.interrupted:
        console.out("interrupted: every state is written, and the same call goes on from here")
        raise KeyboardInterrupt
    log_to_mlflow(state, options.mlflow, console)
    if watch.budget_used_up:
        console.out("the budget is used up: the same call goes on from here, with as much again")
    run = OpenRun(uri)
    if isinstance(console, Cell):
        console.show(run, *([run.plot.curves()] if run.verdict else []))
    return run
