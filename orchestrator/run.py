"""Run: one output folder, in a directory or a bucket; it is the state.

    spec.yaml  plan.json  owner.json  skipped.json  trials/<id>-<epochs>.json  checkpoints/<id>.npz
    leaderboard.parquet  history.parquet

Every file is written whole or not at all. What cannot be read back is put aside under damaged/, never deleted.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.dataset.index import Index
from orchestrator.result import Result
from orchestrator.spec import Spec
from orchestrator.store import Missing, Store

BOARD = "leaderboard.parquet"
HISTORY = "history.parquet"
SPEC = "spec.yaml"


@dataclass(frozen=True)
class Run:
    """The run folder. Every method may raise StoreError."""

    store: Store

    def read_plan(self) -> dict[str, Any] | None:
        """The plan that this folder was last driven with; None in a new folder, or where it is damaged."""
        try:
            plan = json.loads(self.store.read("plan.json"))
            return {"shared": dict(plan["shared"]), "points": [str(point) for point in plan["points"]]}
        except Missing:
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            self._put_aside("plan.json")
            return None

    def write_plan(self, spec_yaml: str, shared: Mapping[str, Any], points: list[str]) -> None:
        """Write spec.yaml and plan.json. shared: see Plan; points: their ids."""
        self.store.write(SPEC, spec_yaml.encode())
        self.store.write("plan.json", json.dumps({"shared": shared, "points": points}, indent=1).encode())

    def write_skipped(self, skipped: list[tuple[str, str]]) -> None:
        """List the files that the run leaves out, as (key, reason)."""
        self.store.write("skipped.json", json.dumps([{"key": k, "reason": r} for k, r in skipped], indent=1).encode())

    def read_results(self) -> dict[str, Result]:
        """Trial id -> its longest result. Damaged files are put aside."""
        found: dict[str, Result] = {}
        objects = [o for o in self.store.list("trials/") if o.key.endswith(".json")]
        for o, data in zip(objects, self.store.read_many(objects), strict=True):
            try:
                result = Result.unsealed(data)
            except ValueError:
                self._put_aside(o.key)
                continue
            if result.trial_id not in found or result.epochs > found[result.trial_id].epochs:
                found[result.trial_id] = result
        return found

    def write_result(self, result: Result) -> None:
        """Write a finished trial's result. The first one stays: an equal trial gives an equal result."""
        self.store.write_if_absent(f"trials/{result.trial_id}-{result.epochs}.json", result.sealed().encode())

    def read_checkpoint(self, trial_id: str) -> bytes | None:
        try:
            return self.store.read(f"checkpoints/{trial_id}.npz")
        except Missing:
            return None

    def put_aside_checkpoint(self, trial_id: str) -> str:
        """Move a checkpoint that cannot be used out of the way; returns where to."""
        return self._put_aside(f"checkpoints/{trial_id}.npz")

    def write_checkpoint(self, trial_id: str, data: bytes) -> None:
        self.store.write(f"checkpoints/{trial_id}.npz", data)

    def write_tables(self, board: pa.Table, history: pa.Table) -> None:
        """Replace the leaderboard and the history."""
        for key, table in ((BOARD, board), (HISTORY, history)):
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, write_page_checksum=True)
            self.store.write(key, sink.getvalue().to_pybytes())

    def tidy(self) -> list[str]:
        """Clear up after killed drivers; returns where damaged tables were put. Only the holder of the lease may."""
        self.store.sweep()
        return [self._put_aside(key) for key in (BOARD, HISTORY) if not self._is_whole(key)]

    def _is_whole(self, key: str) -> bool:
        try:
            read_parquet(self.store.read(key))
        except Missing:
            pass
        except (pa.ArrowException, OSError):
            return False
        return True

    def _put_aside(self, key: str) -> str:
        data = self.store.read(key)
        for number in itertools.count(1):
            aside = f"damaged/{key}" if number == 1 else f"damaged/{key}.{number}"
            if self.store.write_if_absent(aside, data) or self.store.read(aside) == data:
                break
        self.store.delete(key)
        return aside


def read_parquet(data: bytes) -> pa.Table:
    """A table of a run folder. Raises ArrowException or OSError where it is damaged, checksums included."""
    # not read_table: its threads may still hold `data` when Python ends, which aborts the process now and then
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
        return file.read(use_threads=False)


@dataclass(frozen=True)
class Work:
    """All that the trials of a run share; crosses the network once per node.

    Attributes:
        images: Where the index was listed.
    """

    spec: Spec
    index: Index
    images: Store
    run: Run
