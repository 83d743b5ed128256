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
    """Trial id, or stable part/epochs -> bytes of the checkpoint."""
    found = run.store.list("checkpoints")
    return {o.key[len("checkpoints/") : -len(".npz")]: o.size for o in found if o.key.endswith(".npz")}


def forks_kept(run: Run, stable: str, until: int) -> list[int]:
    """After how many epochs of a stable part, at most `until`, there is a checkpoint of it; the latest first."""
    names = (o.key.rpartition("/")[2].removesuffix(".npz") for o in run.store.list(f"checkpoints/{stable}"))
    return sorted((int(name) for name in names if name.isdecimal() and int(name) <= until), reverse=True)


def delete_checkpoints(run: Run, ids: Collection[str]) -> None:
    """Delete the checkpoints of these trials and stable parts, where they have any."""
    found = [name for name in checkpoint_sizes(run) if name.partition("/")[0] in ids]
    run.store.delete_many([f"checkpoints/{name}.npz" for name in found])
