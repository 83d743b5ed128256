"""Classes: how well a model does on each class of its validation images, and what it takes them for. Pure."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from orchestrator.board.estimates import wilson
from orchestrator.board.table import schema

_FIELDS = {
    "class": pa.string(),
    "images": pa.int64(),
    "recall": pa.float64(),
    "recall_low": pa.float64(),
    "recall_high": pa.float64(),
    "answers": pa.int64(),
    "precision": pa.float64(),
    "precision_low": pa.float64(),
    "precision_high": pa.float64(),
    "taken_for": pa.string(),
    "taken": pa.int64(),
}


def confusion(classes: Sequence[str], labels: Sequence[str], predicted: Sequence[str]) -> np.ndarray:
    """(classes, classes) how many images of the class of the row were said to be of that of the column.

    labels, predicted: (images,) names. Raises KeyError for one that is not in `classes`.
    """
    place = {name: i for i, name in enumerate(classes)}
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(matrix, ([place[each] for each in labels], [place[each] for each in predicted]), 1)
    return matrix


def class_table(classes: Sequence[str], matrix: np.ndarray, metric: str) -> pa.Table:
    """One row per class, the lowest recall first; classes without validation images last.

    recall: the part of the class' images that were answered with it. precision: the part of the answers with it that
    were right. Both with the ends of their 95% interval (Wilson's), and empty where there are none. answers: how many
    images were answered with the class. taken_for: the wrong class that was the answer most often, `taken` times.
    matrix: as `confusion` makes it. metric: of the run.
    """
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    rows = []
    for i, name in enumerate(classes):
        right, images, answers, other = (
            int(n) for n in (matrix[i, i], matrix[i].sum(), matrix[:, i].sum(), wrong[i].argmax())
        )
        row = {"class": name, "images": images, "answers": answers, **_share("recall", right, images)}
        row |= _share("precision", right, answers)
        rows.append(row | ({"taken_for": classes[other], "taken": int(wrong[i, other])} if wrong[i, other] else {}))
    rows.sort(key=lambda row: (row["recall"] is None, row["recall"] or 0.0))
    return pa.Table.from_pylist(rows, schema=schema(_FIELDS, [], metric))


def _share(name: str, part: int, whole: int) -> dict[str, float | None]:
    low, high = wilson(part, whole) if whole else (None, None)
    return {name: part / whole if whole else None, f"{name}_low": low, f"{name}_high": high}


def for_reading(table: pa.Table) -> pa.Table:
    """The same for a person: intervals as `0.72-0.86`, and how often a class was taken for another beside its name."""
    rows = [
        {
            "class": row["class"],
            "images": row["images"],
            "recall": row["recall"],
            "recall_95": _interval(row, "recall"),
            "precision": row["precision"],
            "precision_95": _interval(row, "precision"),
            "most_taken_for": f"{row['taken_for']} ({row['taken']:,})" if row["taken_for"] else None,
        }
        for row in table.to_pylist()
    ]
    texts = ("recall_95", "precision_95", "most_taken_for")
    fields = {name: _FIELDS.get(name, pa.string()) for name in ("class", "images", "recall", "recall_95", "precision")}
    fields |= dict.fromkeys(texts[1:], pa.string())
    return pa.Table.from_pylist(rows, schema=pa.schema(fields, metadata=table.schema.metadata))


def _interval(row: dict[str, float], name: str) -> str | None:
    return None if row[name] is None else f"{row[f'{name}_low']:.2f}-{row[f'{name}_high']:.2f}"
