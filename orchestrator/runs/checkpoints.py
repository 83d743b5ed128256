"""Checkpoints: which ones a run folder keeps once their trials are done."""

from collections.abc import Collection
from enum import StrEnum

from orchestrator.runs.folder import Run


class KeepCheckpoints(StrEnum):
    """Whose checkpoints stay; those of trials that may go on stay in any case."""

    best = "best"
    all = "all"
    none = "none"


def checkpoint_sizes(run: Run) -> dict[str, int]:
    """Trial id -> bytes of its checkpoint."""
    found = run.store.list("checkpoints")
    return {o.key[len("checkpoints/") : -len(".npz")]: o.size for o in found if o.key.endswith(".npz")}


def delete_checkpoints(run: Run, trial_ids: Collection[str]) -> None:
    """Delete the checkpoints of these trials, where they have one."""
    run.store.delete_many([f"checkpoints/{each}.npz" for each in checkpoint_sizes(run) if each in trial_ids])
