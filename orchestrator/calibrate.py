"""Calibrate: `python -m orchestrator.calibrate` measures how fast this machine trains."""

import contextlib
import json
import os
import secrets
from dataclasses import asdict
from typing import Annotated

import typer

from orchestrator.data.cache import cache_folder
from orchestrator.driver.calibrate import FILE, measure, read_pace
from orchestrator.errors import BadInput, exit_on_bad_input, run_command
from orchestrator.plan.forecast import FIRST_GUESS
from orchestrator.words import clock


def main(
    precisions: Annotated[
        str, typer.Option(help="Which to measure, with commas between: float32, mixed_bfloat16, mixed_float16.")
    ] = "float32,mixed_bfloat16",
) -> None:
    """Measure how fast this machine trains, in about a minute, and keep it for the forecasts of --plan."""
    with exit_on_bad_input():
        path = cache_folder() / FILE
        if path.exists() and read_pace() is FIRST_GUESS:
            raise BadInput(f"{path} must be a calibration, and is another file: move it, or set ORCHESTRATOR_CACHE_DIR")
        pace = measure(("float32", *(p.strip() for p in precisions.split(",") if p.strip() != "float32")))
        new = path.with_name(f".{FILE}.{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(asdict(pace), indent=1))
            os.replace(new, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            raise BadInput(
                f"{path.parent} must be writable: {error.strerror or error}; set ORCHESTRATOR_CACHE_DIR to another"
            ) from None
    print("precision       batch size  images/s  (one worker of those that run at once, 64x64)")
    for precision, sizes in pace.step_s.items():
        for size, step_s in sizes.items():
            print(f"{precision:<14}  {size:>10}  {size / step_s:>8.0f}")
    print(
        f"\n{clock(pace.worker_start_s)} until workers train, {pace.trial_start_s:.1f} s more for each trial, "
        f"{1 / pace.fill_image_s:.0f} images/s into a node's cache; kept in {path}"
    )


if __name__ == "__main__":
    run_command(main)
