"""Calibrate: `python -m orchestrator.calibrate` measures how fast this machine trains."""

from dataclasses import asdict
from typing import Annotated

import typer

from orchestrator.documents import document
from orchestrator.driver.calibrate import calibrate, describe_pace
from orchestrator.errors import exit_on_bad_input, run_command
from orchestrator.machine import has_bfloat16
from orchestrator.terminal import make_console, write


def main(
    precisions: Annotated[
        str,
        typer.Option(
            help="Which to measure, with commas between: float32, mixed_bfloat16, mixed_float16. "
            "Without it: float32, and mixed_bfloat16 where the CPUs have instructions for it."
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: see docs/json.md.")] = False,
) -> None:
    """Measure how fast this machine trains, in about a minute, and keep it for the forecasts of --plan."""
    with exit_on_bad_input():
        named = precisions or ("mixed_bfloat16" if has_bfloat16() else "")
        others = [p.strip() for p in named.split(",") if p.strip() not in ("", "float32")]
        pace, path = calibrate(("float32", *others))
    if as_json:
        write(document("calibration", file=str(path), **asdict(pace)))
    else:
        make_console().out(*describe_pace(pace, path))


if __name__ == "__main__":
    run_command(main)
