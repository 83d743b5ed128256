"""Winner: what the winning model says of the validation images, class by class and at its worst."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.board.classes import class_table, confusion
from orchestrator.board.table import facts as facts_of
from orchestrator.board.tested import describe_test
from orchestrator.display.predictions import say_threshold
from orchestrator.errors import BadInput
from orchestrator.runs.folder import BEST, VALIDATION, Run, read_parquet
from orchestrator.runs.result import Exported, Tested
from orchestrator.words import label, plural


def say_test(run: Run, board: pa.Table) -> list[str]:
    """What the point that ranks first reaches on the test images, if it was shown any."""
    test = read_test(run, board)
    return [describe_test(test)] if test else []


def read_test(run: Run, board: pa.Table) -> Tested | None:
    """What the point that ranks first reaches on the test images; None if it was shown none."""
    best = read_first(run, board)
    return best.test if best else None


def read_first(run: Run, board: pa.Table, name: str = BEST) -> Exported | None:
    """The facts of a model in models/, if it is that of the point that ranks first. name: BEST or REFIT."""
    found = run.read_model(name)
    return found if found and board.num_rows and found.point_id == board["point_id"][0].as_py() else None


@dataclass(frozen=True)
class Winner:
    """The model of models/best, by what lies beside it.

    Attributes:
        facts: What best.json says; of older versions it may lack fields.
        rows: One for each validation image: path, label, predicted, probabilities, thumbnail.
    """

    facts: Mapping[str, Any]
    rows: pa.Table

    @property
    def classes(self) -> list[str]:
        return list(self.facts["classes"])

    @cached_property
    def matrix(self) -> np.ndarray:
        """See `confusion`."""
        return confusion(self.classes, self.rows["label"].to_pylist(), self.rows["predicted"].to_pylist())

    def table(self, board: pa.Table) -> pa.Table:
        """See `class_table`."""
        return class_table(self.classes, self.matrix, facts_of(board)["metric"])

    def says(self, board: pa.Table) -> list[str]:
        """Whose figures these are, of how many images, and with which threshold. board: the run's, as it stands."""
        seed, fold, epoch = self.facts.get("seed") or 0, self.facts.get("fold") or 0, self.facts.get("epoch")
        name = label(self.facts.get("values") or {}, seed, fold)
        point, first = self.facts.get("point_id"), board["point_id"][0].as_py() if board.num_rows else None
        line = f"the winner: {name}" + (f", after epoch {epoch}" if epoch else "")
        if point and point != first:
            line = f"not of the point that ranks first now, but of an earlier one: {name}"
        lines = [
            f"{line}; its answers on {plural(self.rows.num_rows, 'validation image')}, with 95% intervals (Wilson's)"
        ]
        if len(self.classes) == 2:
            lines[0] += f"; {self.classes[1]} is said above a probability of 0.5, as in training"
        if self.facts.get("threshold") is not None:
            lines.append(f"python -m orchestrator.predict says it differently: {say_threshold(self.facts)}")
        return lines

    def worst(self) -> list[dict[str, Any]]:
        """The images with a thumbnail, the one with the least probability of its own class first.

        own, probability: that of its class, and that of the class it was said to be of.
        """
        place = {name: i for i, name in enumerate(self.classes)}
        found = [
            {
                "path": row["path"],
                "label": row["label"],
                "predicted": row["predicted"],
                "own": row["probabilities"][place[row["label"]]],
                "probability": row["probabilities"][place[row["predicted"]]],
                "png": base64.b64encode(row["thumbnail"]).decode(),
            }
            for row in self.rows.filter(self.rows["thumbnail"].is_valid()).to_pylist()
        ]
        return sorted(found, key=lambda each: each["own"])


def read_winner(run: Run) -> Winner | None:
    """The winner of a run folder; None where it holds no model. Raises BadInput where a file is damaged."""
    facts, data = read_json(run, f"models/{BEST}.json"), run.read_if_there(VALIDATION)
    if facts is None or data is None:
        return None
    try:
        return Winner(facts, read_parquet(data))
    except (pa.ArrowException, OSError):
        raise BadInput(
            f"{VALIDATION} in {run.store.uri} is damaged: run the grid again to have it made anew, or delete it"
        ) from None


def read_json(run: Run, key: str) -> Any:
    """A JSON file of the run folder; None if there is none. Raises BadInput where it is damaged."""
    data = run.read_if_there(key)
    try:
        return json.loads(data) if data else None
    except ValueError:
        raise BadInput(f"{key} in {run.store.uri} must be JSON: run the grid again to write it anew") from None
