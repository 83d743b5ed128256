"""Predictions: what a model says of images, as a table, CSV or JSON."""

import csv
import json
import sys
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from rich.table import Table
from rich.text import Text

from orchestrator.run.result import Exported
from orchestrator.terminal import make_console


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"


def print_predictions(found: Sequence[tuple[str, np.ndarray]], facts: Exported, format: Format) -> None:
    """found: path and (classes,) probabilities of each image."""
    # as in training: of two classes, the second wins only above one half
    says = [int(p[1] > 0.5) if len(p) == 2 else int(p.argmax()) for _, p in found]
    rows = [(path, facts.classes[i], float(p[i])) for i, (path, p) in zip(says, found, strict=True)]
    if format is Format.json:
        keys = ("path", "class", "probability")
        each = [dict(zip(facts.classes, p.tolist(), strict=True)) for _, p in found]
        trees = [dict(zip(keys, row, strict=True)) | {"probabilities": p} for row, p in zip(rows, each, strict=True)]
        print(json.dumps(trees, indent=1))
    elif format is Format.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([("path", "class", "probability"), *rows])
    elif rows:
        table = Table("path", "class", box=None, pad_edge=False, header_style="bold")
        table.add_column("probability", justify="right")
        for path, name, probability in rows:
            table.add_row(Text(path, overflow="fold"), Text(name), f"{probability:.4f}")
        make_console().print(table)
