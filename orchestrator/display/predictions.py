"""Predictions: what a model says of images, as a table, as CSV, or as plain values for JSON."""

import csv
import io
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table
from rich.text import Text

from orchestrator.board.classes import class_table, confusion, for_reading
from orchestrator.board.tested import describe_judged, judge_labelled
from orchestrator.display.table import as_rich
from orchestrator.metrics import METRICS
from orchestrator.runs.result import Exported
from orchestrator.runs.threshold import HALF
from orchestrator.terminal import make_console, write
from orchestrator.words import printable


class Format(StrEnum):
    table = "table"
    csv = "csv"


def print_predictions(
    found: Sequence[tuple[str, np.ndarray]], facts: Exported, format: Format, labels: Sequence[str] = ()
) -> None:
    """found: path and (classes,) probabilities of each image. A threshold other than one half is told with them.

    labels: the class of each image, where it is known: then how often the model is right stands below, or on stderr,
    and the table is one of classes.
    """
    trees = as_rows(found, facts, labels)
    names = ("path", "class", "probability", *(["label"] if labels else []))
    rows = [tuple(tree[name] for name in names) for tree in trees]
    console = make_console(stderr=format is not Format.table)
    if format is Format.csv:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([names, *rows])
        write(text.getvalue().removesuffix("\n"))
    elif labels:
        matrix = confusion(facts.classes, labels, [tree["class"] for tree in trees])
        console.print(as_rich(for_reading(class_table(facts.classes, matrix, facts.metric)), console.width))
    elif rows:
        table = Table("path", "class", box=None, pad_edge=False, header_style="bold")
        table.add_column("probability", justify="right")
        for path, name, probability in rows:
            table.add_row(Text(printable(path), overflow="fold"), Text(printable(name)), f"{probability:.4f}")
        console.print(table)
    if labels:
        console.out("", describe_judged(_judged(found, labels), facts))
    if rows and facts.threshold is not None:
        console.out("", say_threshold(facts.model_dump()))


def predictions_tree(
    found: Sequence[tuple[str, np.ndarray]], facts: Exported, labels: Sequence[str] = ()
) -> dict[str, Any]:
    """The same as plain values: see docs/json.md."""
    figures = judge_labelled(_judged(found, labels), facts) if labels else None
    return {
        "classes": list(facts.classes),
        "threshold": facts.threshold,
        "images": as_rows(found, facts, labels),
        "labelled": figures,
    }


def _judged(found: Sequence[tuple[str, np.ndarray]], labels: Sequence[str]) -> pa.Table:
    return pa.table({"label": labels, "probabilities": [p.tolist() for _, p in found]})


def as_rows(
    found: Sequence[tuple[str, np.ndarray]], facts: Exported, labels: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """For each image its path, class, the probability of that, and of all; for two classes with the threshold.

    labels: the class of each image, where it is known.
    """
    threshold = HALF if facts.threshold is None else facts.threshold
    more = {"threshold": threshold} if len(facts.classes) == 2 else {}
    rows = []
    for i, (path, p) in enumerate(found):
        says = int(p[1] > threshold) if len(p) == 2 else int(p.argmax())
        row: dict[str, Any] = {"path": path, "class": facts.classes[says], "probability": float(p[says])}
        row |= {"label": labels[i]} if labels else {}
        rows.append(row | {"probabilities": dict(zip(facts.classes, p.tolist(), strict=True))} | more)
    return rows


def say_threshold(facts: Mapping[str, Any]) -> str:
    """From which probability on the second class is said, and why. facts: those of an Exported with a threshold."""
    line = f"{facts['classes'][1]} is said where its probability is above {facts['threshold']:g}, not above 0.5"
    if not (why := facts.get("threshold_chosen")):
        return line
    metric = why["metric"]
    text = METRICS[metric].text if metric in METRICS else "{:.4f}".format
    return (
        f"{line}: on the {why['images']:,} validation images, which chose it, that makes {metric} "
        f"{text(why['at_threshold'])} instead of {text(why['at_half'])}; on other images it gains less"
    )
