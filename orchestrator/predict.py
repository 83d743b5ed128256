"""Predict: how a trained model classifies images. `python -m orchestrator.predict RUN_OR_MODEL IMAGES...`"""

import csv
import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

from orchestrator.errors import exit_on_bad_input, run_command
from orchestrator.run.result import Exported
from orchestrator.terminal import make_console
from orchestrator.train.inference import find_pictures, predict, read_model


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"


def main(
    model: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="Run folder, or a .keras file beside its .json.")
    ],
    images: Annotated[list[str], typer.Argument(help="Image files and folders; s3:// as well.")],
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
) -> None:
    """Print the class and its probability for each image, prepared as in training."""
    with exit_on_bad_input():
        data, facts, name = read_model(model)
        pictures, failures = find_pictures(images)
        found = predict(data, facts, name, pictures) if pictures else {}
    failures |= {pictures[i].path: what for i, what in found.items() if isinstance(what, str)}
    _print([(pictures[i].path, what) for i, what in sorted(found.items()) if not isinstance(what, str)], facts, format)
    for path, reason in failures.items():
        print(f"error: {path}: {reason}", file=sys.stderr)
    raise SystemExit(1 if failures else 0)


def _print(found: Sequence[tuple[str, np.ndarray]], facts: Exported, format: Format) -> None:
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


if __name__ == "__main__":
    run_command(main)
