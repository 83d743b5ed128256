"""Run: one output folder, in a directory or a bucket; it is the state.

    spec.yaml  plan.json  owner.json  skipped.json  trials/<id>-<epochs>.json  checkpoints/<id>.npz
    leaderboard.parquet  history.parquet

Every file is written whole or not at all. What cannot be read back is put aside under damaged/, never deleted.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

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
        except (ValueError, KeyError, TypeError):
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
                result = Result.model_validate_json(data)
            except ValidationError:
                self._put_aside(o.key)
                continue
            if result.trial_id not in found or result.epochs > found[result.trial_id].epochs:
                found[result.trial_id] = result
        return found

    def write_result(self, result: Result) -> None:
        """Write a finished trial's result. The first one stays: an equal trial gives an equal result."""
        self.store.write_if_absent(f"trials/{result.trial_id}-{result.epochs}.json", result.model_dump_json().encode())

    def read_checkpoint(self, trial_id: str) -> bytes | None:
        try:
            return self.store.read(f"checkpoints/{trial_id}.npz")
        except Missing:
            return None

    def write_checkpoint(self, trial_id: str, data: bytes) -> None:
        """Tagged as ORCHESTRATOR_CHECKPOINT_TAG says, `key=value`. Unset: not, since not every store takes tags."""
        key, equals, value = os.environ.get("ORCHESTRATOR_CHECKPOINT_TAG", "").partition("=")
        self.store.write(f"checkpoints/{trial_id}.npz", data, {key: value} if equals else None)

    def write_tables(self, board: pa.Table, history: pa.Table) -> None:
        """Replace the leaderboard and the history."""
        for key, table in ((BOARD, board), (HISTORY, history)):
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink)
            self.store.write(key, sink.getvalue().to_pybytes())

    def _put_aside(self, key: str) -> None:
        self.store.write(f"damaged/{key}", self.store.read(key))
        self.store.delete(key)


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
