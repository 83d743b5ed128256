"""Predict: how a trained model classifies images. `python -m orchestrator.predict RUN_OR_MODEL IMAGES...`"""

from typing import Annotated

import typer

from orchestrator.display.predictions import Format, predictions_tree, print_predictions
from orchestrator.documents import document
from orchestrator.errors import BadInput, exit_on_bad_input, run_command, say_error
from orchestrator.terminal import make_console, write
from orchestrator.train.inference import classify


def main(
    model: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="Run folder, or a .keras file beside its .json.")
    ],
    images: Annotated[list[str], typer.Argument(help="Image files and folders; s3:// as well.")],
    labelled: Annotated[
        bool, typer.Option("--labelled", help="IMAGES are laid out as training data are: say how often it is right.")
    ] = False,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: see docs/json.md.")] = False,
) -> None:
    """Print the class and its probability for each image, prepared as in training."""
    with exit_on_bad_input():
        if as_json and format is not Format.table:
            raise BadInput(f"--json and --format {format} are two formats: give one of them")
        done = classify(model, images, labelled)
    if as_json:
        tree = predictions_tree(done.said, done.facts, done.labels)
        failures = [{"path": path, "reason": reason} for path, reason in done.failures.items()]
        write(document("predictions", model=model, **tree, failures=failures, notes=done.notes))
    else:
        print_predictions(done.said, done.facts, format, done.labels)
    make_console(stderr=True).out(*done.notes)
    for path, reason in done.failures.items():
        say_error(f"{path}: {reason}")
    raise SystemExit(1 if done.failures else 0)


if __name__ == "__main__":
    run_command(main)
