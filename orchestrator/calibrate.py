"""Calibrate: `python -m orchestrator.calibrate` measures how fast this machine trains."""

from typing import Annotated

import typer

from orchestrator.driver.calibrate import calibrate
from orchestrator.errors import exit_on_bad_input, run_command
from orchestrator.machine import has_bfloat16
from orchestrator.terminal import make_console


def main(
    precisions: Annotated[
        str,
        typer.Option(
            help="Which to measure, with commas between: float32, mixed_bfloat16, mixed_float16. "
            "Without it: float32, and mixed_bfloat16 where the CPUs have instructions for it."
        ),
    ] = "",
) -> None:
    """Measure how fast this machine trains, in about a minute, and keep it for the forecasts of --plan."""
    with exit_on_bad_input():
        named = precisions or ("mixed_bfloat16" if has_bfloat16() else "")
        others = [p.strip() for p in named.split(",") if p.strip() not in ("", "float32")]
        make_console().out(*calibrate(("float32", *others)))


if __name__ == "__main__":
    run_command(main)
