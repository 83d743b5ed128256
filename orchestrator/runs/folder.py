"""Run: one output folder, in a directory or a bucket; it is the state.

    spec.yaml  plan.json  owner.json  skipped.json  trials/<id>-<epochs>.json  checkpoints/<id>.npz
    checkpoints/<stable part>/<epochs>.npz: where trials leave what they share; see plans/points.py
    features/<view>/<chunk>.f32 and <view>.json: of a backbone; see data/features.py
    rates/<test>.json: what a range test found; see rates.py
    index.parquet: which images these are; see data/changes.py
    race.json  leaderboard.parquet  history.parquet  predictions.parquet  report.html  dataset.json  events/<point>/…
    progress.json: what runs now, and how long it will take; only while a driver is at work
    models/refit.keras and .json: the winner, trained once more on the validation images too
    models/best.keras, .json and -validation.parquet: the winner's; <point>.…: kept; candidates/<point>.…: may still win
    samples.webp: training images as the first epochs change them
    events.jsonl: what happened; see events.py. told.json: of which ends of the run somebody was told
    suggested/<number>.yaml: points that --suggest named, with what it knew
    test.json: each time that a winner was shown the test images; models/best-test.parquet: what it said of them

Every file is written whole or not at all, but for events.jsonl, which grows. What cannot be read back is moved to
damaged/, never deleted.
"""

import contextlib
import itertools
import json
import os
import platform
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from orchestrator import __version__
from orchestrator.data import unpacking
from orchestrator.runs.result import Exported, Result, Tested
from orchestrator.store import Missing, Object, Store

BOARD = "leaderboard.parquet"
HISTORY = "history.parquet"
PREDICTIONS = "predictions.parquet"
SPEC = "spec.yaml"
SKIPPED = "skipped.json"
DATASET = "dataset.json"
INDEX = "index.parquet"
REPORT = "report.html"
PROGRESS = "progress.json"
BEST = "best"
REFIT = "refit"
VALIDATION = f"models/{BEST}-validation.parquet"
TEST = f"models/{BEST}-test.parquet"
LOOKS = "test.json"
SAMPLES = "samples.webp"
TOLD = "told.json"
WEIGHTS = b"orchestrator.weights"  # in the metadata of TEST: SHA-256 over those that said it
CANDIDATES = "candidates/"
_SUGGESTED = re.compile(r"suggested/([0-9]+)\.yaml")


class KeepModels(StrEnum):
    """Which points' models the run folder keeps."""

    best = "best"
    all = "all"
    none = "none"


@dataclass(frozen=True)
class Run:
    """The run folder. Every method may raise StoreError."""

    store: Store

    def read_plan(self) -> dict[str, Any] | None:
        """The plan of the last driver of this folder; None in a new folder, or if the plan is damaged."""
        try:
            plan = json.loads(self.store.read("plan.json"))
            return {"shared": dict(plan["shared"]), "points": [str(point) for point in plan["points"]]}
        except Missing:
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            self._quarantine("plan.json")
            return None

    def write_plan(self, spec_yaml: str, shared: Mapping[str, Any], points: list[str]) -> None:
        """Write spec.yaml and plan.json. shared: see Plan; points: their ids."""
        self.store.write(SPEC, spec_yaml.encode())
        self.store.write("plan.json", json.dumps({"shared": shared, "points": points}, indent=1).encode())

    def write_skipped(self, skipped: list[tuple[str, str]]) -> None:
        """List the files that the run leaves out, as (key, reason)."""
        self.store.write(SKIPPED, json.dumps([{"key": k, "reason": r} for k, r in skipped], indent=1).encode())

    def read_results(self) -> dict[str, Result]:
        """Trial id -> its longest result. Damaged files are moved to damaged/, and the next longest counts."""
        found: dict[str, Result] = {}
        left: dict[str, list[tuple[int, Object]]] = {}
        for o in self.store.list("trials/"):
            if name := re.fullmatch(r"trials/([^/]+)-([0-9]+)\.json", o.key):
                left.setdefault(name[1], []).append((int(name[2]), o))
        while left := {trial_id: own for trial_id, own in left.items() if own}:
            longest = [(trial_id, max(own, key=lambda each: each[0])) for trial_id, own in left.items()]
            for (trial_id, each), data in zip(longest, self.store.read_many([o for _, (_, o) in longest]), strict=True):
                try:
                    result = Result.unsealed(data)
                except ValueError:
                    self._quarantine(each[1].key)
                    left[trial_id].remove(each)
                    continue
                found[result.trial_id] = result
                del left[trial_id]
        return found

    def write_result(self, result: Result) -> None:
        """Write a finished trial's result. An existing one stays: the same trial gives the same result."""
        self.store.write_if_absent(f"trials/{result.trial_id}-{result.epochs}.json", result.sealed().encode())

    def read_checkpoint(self, trial_id: str) -> bytes | None:
        return self.read_if_there(f"checkpoints/{trial_id}.npz")

    def quarantine_checkpoint(self, trial_id: str) -> str:
        """Move a checkpoint that cannot be used to damaged/; returns its new place."""
        return self._quarantine(f"checkpoints/{trial_id}.npz")

    def write_checkpoint(self, trial_id: str, data: bytes) -> None:
        """Write a checkpoint, tagged if ORCHESTRATOR_CHECKPOINT_TAG is `key=value`: not every store takes tags."""
        key, equals, value = os.environ.get("ORCHESTRATOR_CHECKPOINT_TAG", "").partition("=")
        self.store.write(f"checkpoints/{trial_id}.npz", data, {key: value} if equals else None)

    def write_dataset(self, facts: Mapping[str, Any]) -> None:
        """Write what the run trains on: counts per class, sizes, versions."""
        self.store.write(DATASET, json.dumps({**facts, "versions": versions()}, indent=1).encode())

    def read_dataset(self) -> dict[str, Any]:
        """What `write_dataset` wrote; empty where there is none, or it is damaged."""
        with contextlib.suppress(Missing, ValueError, TypeError, RecursionError):
            return dict(json.loads(self.store.read(DATASET)))
        return {}

    def write_index(self, images: pa.Table) -> None:
        """Write which images the run trains on, once: as they change, it does not go on. See data/changes.py."""
        if not self.store.exists(INDEX):
            self.write_tables({INDEX: images})

    def read_index(self) -> pa.Table | None:
        """What `write_index` wrote; None where there is none, or it is damaged."""
        with contextlib.suppress(pa.ArrowException, OSError, KeyError):
            if data := self.read_if_there(INDEX):
                return read_parquet(data).select(["name", "label", "part", "version", "content"])
        return None

    def list_models(self) -> list[str]:
        """Names of the complete models: best, <point> if kept, candidates/<point> of those that may still win."""
        return [o.key[len("models/") : -len(".json")] for o in self._model_facts()]

    def read_models(self) -> dict[str, Exported]:
        """Name -> the facts in its .json, for every complete model."""
        objects, found = self._model_facts(), {}
        for o, data in zip(objects, self.store.read_many(objects), strict=True):
            with contextlib.suppress(ValidationError):  # not one of ours
                found[o.key[len("models/") : -len(".json")]] = Exported.model_validate_json(data)
        return found

    def _model_facts(self) -> list[Object]:
        return [o for o in self.store.list("models") if o.key.endswith(".json")]

    def read_model(self, name: str) -> Exported | None:
        """The facts in a model's .json; None if there is no complete model of this name."""
        try:
            return Exported.model_validate_json(self.store.read(f"models/{name}.json"))
        except (Missing, ValidationError):
            return None

    def write_model(self, name: str, keras: bytes, validation: bytes | None, facts: Exported) -> None:
        """Write a model, and its .json last: a model without one is incomplete.

        validation: Parquet, one row per validation image; see train/export.py. None: no image validates it.
        """
        self.store.delete(f"models/{name}.json")
        self.store.write(f"models/{name}.keras", keras)
        if validation is not None:
            self.store.write(f"models/{name}-validation.parquet", validation)
        self.store.write(f"models/{name}.json", facts.model_dump_json(indent=1).encode())

    def copy_model(self, source: str, target: str, facts: Exported) -> None:
        """Write the model `source` as `target`, with these facts in its .json."""
        if source != target:
            keras, validation = (self.store.read(f"models/{source}{end}") for end in (".keras", "-validation.parquet"))
            self.write_model(target, keras, validation, facts)
        else:
            self.store.write(f"models/{target}.json", facts.model_dump_json(indent=1).encode())

    def read_looks(self) -> list[Tested]:
        """Every time that a winner was shown the test images, the last one last."""
        data = self.read_if_there(LOOKS)
        try:
            return [Tested.model_validate(each) for each in json.loads(data)] if data else []
        except (ValueError, TypeError, RecursionError):
            self._quarantine(LOOKS)
            return []

    def write_look(self, looks: Sequence[Tested], judged: bytes | None, facts: Exported) -> None:
        """Record what the winner reaches on the test images. judged: what it says of each, if that is new."""
        if judged is not None:
            self.store.write(TEST, judged)
        self.store.write(LOOKS, json.dumps([look.model_dump() for look in looks], indent=1).encode())
        self.store.write(f"models/{BEST}.json", facts.model_dump_json(indent=1).encode())

    def read_told(self) -> list[dict[str, str]]:
        """Of which ends of the run somebody was told; none where that is damaged."""
        data = self.read_if_there(TOLD)
        try:
            return [dict(each) for each in json.loads(data)] if data else []
        except (ValueError, TypeError, RecursionError):
            self._quarantine(TOLD)
            return []

    def write_told(self, told: Sequence[Mapping[str, str]]) -> None:
        """What `read_told` gives back."""
        self.store.write(TOLD, json.dumps(told, indent=1).encode())

    def fetch_model(self, name: str, folder: Path) -> None:
        """Copy the files of a model into a folder of this machine."""
        for end in (".json", ".keras", "-validation.parquet"):
            (folder / f"{name}{end}").write_bytes(self.store.read(f"models/{name}{end}"))

    def delete_models(self, names: Sequence[str]) -> None:
        self.store.delete_many([f"models/{name}.json" for name in names])  # first: without it a model is incomplete
        self.store.delete_many([f"models/{name}{end}" for name in names for end in (".keras", "-validation.parquet")])

    def list_events(self) -> dict[str, list[str]]:
        """Point -> names of its files with TensorBoard's events. Other files there are not ours."""
        found: dict[str, list[str]] = {}
        for o in self.store.list("events"):
            if match := re.fullmatch(r"events/([^/]+)/(events\.out\.tfevents\.[0-9a-f]{8})", o.key):
                found.setdefault(match[1], []).append(match[2])
        return found

    def replace_events(self, point_id: str, old: Collection[str], name: str, data: bytes) -> None:
        """Write a point's events in place of its old ones."""
        for old_name in old:
            self.store.delete(f"events/{point_id}/{old_name}")
        self.store.write(f"events/{point_id}/{name}", data)

    def write_tables(self, tables: Mapping[str, pa.Table]) -> None:
        """Replace these tables, by their keys: the leaderboard, the history, what the points had right."""
        for key, table in tables.items():
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, write_page_checksum=True, compression="zstd")
            self.store.write(key, sink.getvalue().to_pybytes())

    def write_race(self, course: Mapping[str, Any] | None) -> None:
        """Write what a race granted and stopped, for people: it is computed anew from the results, and never read.

        None: there is no race, and no file.
        """
        if course is None:
            self.store.delete("race.json")
        else:
            self.store.write("race.json", json.dumps(course, indent=1).encode())

    def write_progress(self, progress: Mapping[str, Any] | None) -> None:
        """Write what runs now, for people: nothing is read back from it. None: nothing does, and there is no file."""
        if progress is None:
            self.store.delete(PROGRESS)
        else:
            self.store.write(PROGRESS, json.dumps(progress).encode())

    def keep_suggested(self, text: str, is_same: Callable[[str], bool]) -> str:
        """Write what was suggested to a file of its own, unless the last such file says the same. Returns its key."""
        numbers = [int(name[1]) for o in self.store.list("suggested") if (name := _SUGGESTED.fullmatch(o.key))]
        last = f"suggested/{max(numbers, default=0)}.yaml"
        if numbers and is_same(self.store.read(last).decode(errors="replace")):
            return last
        for number in itertools.count(max(numbers, default=0) + 1):
            if self.store.write_if_absent(key := f"suggested/{number}.yaml", text.encode()):
                break
        return key

    def read_if_there(self, key: str) -> bytes | None:
        """One file of the run folder; None if it does not exist."""
        try:
            return self.store.read(key)
        except Missing:
            return None

    def write_report(self, page: str) -> None:
        """Replace report.html."""
        self.store.write(REPORT, page.encode(errors="replace"))  # a folder's name need not be Unicode

    def tidy(self, keep: KeepModels = KeepModels.best) -> list[str]:
        """Clean up after killed drivers. Returns where damaged tables were moved. Only for the holder of the lease."""
        self.store.sweep()
        tables = [BOARD, HISTORY, PREDICTIONS, *([] if keep is KeepModels.none else [VALIDATION])]
        damaged = [key for key in tables if not self._is_whole(key)]
        if VALIDATION in damaged:
            self.store.delete(f"models/{BEST}.json")  # so that the model is made again, with its predictions
        return [self._quarantine(key) for key in damaged]

    def _is_whole(self, key: str) -> bool:
        data = self.read_if_there(key)
        try:
            return data is None or bool(read_parquet(data).num_columns)
        except (pa.ArrowException, OSError):
            return False

    def _quarantine(self, key: str) -> str:
        data = self.store.read(key)
        for number in itertools.count(1):
            aside = f"damaged/{key}" if number == 1 else f"damaged/{key}.{number}"
            if self.store.write_if_absent(aside, data) or self.store.read(aside) == data:
                break
        self.store.delete(key)
        return aside


def read_parquet(data: bytes) -> pa.Table:
    """A table of a run folder, checked by its checksums. Raises ArrowException or OSError if it is damaged."""
    # not read_table: its threads may still hold `data` when Python ends, which aborts the process now and then
    try:
        table = unpacking.read_parquet(pa.BufferReader(data), page_checksum_verification=True)
    except UnicodeDecodeError as error:  # in the name of a column
        raise pa.ArrowInvalid(str(error)) from None
    table.validate(full=True)  # strings too
    return table


def versions() -> dict[str, str]:
    """Name -> version, of everything that a result depends on."""
    libraries = {name: version(name) for name in ("tensorflow", "keras")}
    return {"python": platform.python_version(), **libraries, "orchestrator": __version__}
