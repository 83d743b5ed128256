"""Calibrate: `python -m orchestrator.calibrate` measures how fast this machine trains."""

from typing import Annotated

import typer

from orchestrator.driver.calibrate import calibrate
from orchestrator.errors import end_whoever_reads, exit_on_bad_input, run_command
from orchestrator.terminal import make_console


def main(
    precisions: Annotated[
        str, typer.Option(help="Which to measure, with commas between: float32, mixed_bfloat16, mixed_float16.")
    ] = "float32,mixed_bfloat16",
) -> None:
    """Measure how fast this machine trains, in about a minute, and keep it for the forecasts of --plan."""
    end_whoever_reads()
    with exit_on_bad_input():
        make_console().out(
            *calibrate(("float32", *(p.strip() for p in precisions.split(",") if p.strip() != "float32")))
        )


if __name__ == "__main__":
    run_command(main)
