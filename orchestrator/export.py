"""Export: `python -m orchestrator.export RUN --to FORMAT`: the winner's model as other programs run it, and checked."""

from enum import StrEnum
from typing import Annotated

import typer

from orchestrator.errors import FAILED, exit_on_bad_input, run_command, say_error
from orchestrator.terminal import make_console, without_stderr


class Format(StrEnum):
    savedmodel = "savedmodel"
    tflite = "tflite"
    onnx = "onnx"


def main(
    model: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="Run folder, or a .keras file beside its .json.")
    ],
    to: Annotated[Format, typer.Option(help="What to write.")],
    output: Annotated[
        str | None, typer.Option(help="Folder or bucket to write to; ./<run>-<format> if left out.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Whole numbers of 8 bits; tflite only.")] = False,
    data: Annotated[str | None, typer.Option(help="Where the run's images lie now, if they were moved.")] = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not compare it on the validation images.")] = False,
) -> None:
    """Write the winner's model for other programs, and compare what it says of the validation images."""
    with exit_on_bad_input():
        with without_stderr():
            from orchestrator.train.conversion import CLOSE, convert

        done = convert(model, to.value, output, int8, data, not no_check)
    make_console().out(*done.lines)
    if done.check and not int8 and done.check.largest > CLOSE:
        say_error(
            f"it says something else than the run's model did, by more than {CLOSE:g}: have the images changed since?"
        )
        raise SystemExit(FAILED)


if __name__ == "__main__":
    run_command(main)
