"""Predict: how a trained model classifies images. `python -m orchestrator.predict RUN_OR_MODEL IMAGES...`"""

import sys
from typing import Annotated

import typer

from orchestrator.display.predictions import Format, print_predictions
from orchestrator.errors import exit_on_bad_input, run_command
from orchestrator.train.inference import classify


def main(
    model: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="Run folder, or a .keras file beside its .json.")
    ],
    images: Annotated[list[str], typer.Argument(help="Image files and folders; s3:// as well.")],
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
) -> None:
    """Print the class and its probability for each image, prepared as in training."""
    with exit_on_bad_input():
        facts, found, failures = classify(model, images)
    print_predictions(found, facts, format)
    for path, reason in failures.items():
        print(f"error: {path}: {reason}", file=sys.stderr)
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    run_command(main)
