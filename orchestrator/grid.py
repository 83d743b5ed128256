"""Grid: `python -m orchestrator.grid`, the main command: trains every point of a grid once and ranks them."""

import json
import os
import shlex
import signal
import sys
from dataclasses import replace
from typing import Annotated

import typer

from orchestrator.driver.lay_out import Options
from orchestrator.driver.line import orchestrate
from orchestrator.driver.signals import on_signals
from orchestrator.driver.suggesting import added_points
from orchestrator.errors import (
    INTERRUPTED,
    BadInput,
    end_whoever_reads,
    error_document,
    exit_at_once,
    exit_on_bad_input,
    run_command,
)
from orchestrator.runs.checkpoints import KeepCheckpoints
from orchestrator.runs.folder import KeepModels
from orchestrator.spec.reading import read_spec
from orchestrator.terminal import make_console, write

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C during the imports ends without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main(
    spec: Annotated[
        str | None, typer.Argument(help="YAML file; without one, a small grid on images that come with the package.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change one field of the spec; VALUE is YAML. Repeatable."),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="URI", help="Images: a folder or s3:// address.")] = None,
    output: Annotated[str | None, typer.Option(metavar="URI", help="Where the run folder goes.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run and its folder.")] = None,
    points: Annotated[
        list[str] | None,
        typer.Option("--points", metavar="FILE", help="Add the points in a file, as --suggest writes it. Repeatable."),
    ] = None,
    suggest: Annotated[
        int | None,
        typer.Option("--suggest", min=1, metavar="N", help="Suggest N points to train next, and train nothing."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be trained, and train nothing.")] = False,
    show: Annotated[
        str | None, typer.Option(metavar="PNG", help="With --plan: draw training images as they are augmented.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: see docs/json.md.")] = False,
    share_epochs: Annotated[bool, typer.Option(help="Points that differ only in epochs share one trial.")] = True,
    takeover: Annotated[bool, typer.Option("--takeover", help="Take the run over from another driver.")] = False,
    keep: Annotated[
        KeepModels, typer.Option("--export-models", help="Whose trained models are kept.")
    ] = KeepModels.best,
    keep_checkpoints: Annotated[
        KeepCheckpoints,
        typer.Option(
            help="Whose states stay when they are trained. Without one, more epochs are trained from the start, and so "
            "is a model that is asked for later; what was interrupted goes on in any case."
        ),
    ] = KeepCheckpoints.all,
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="MLflow server to log every point to.")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Serve the report on this machine while it trains.")] = False,
) -> None:
    """Train every point of a grid once and rank them. The same command again finishes what is missing."""
    shortcuts = {"data.uri": data, "output": output, "name": name}
    overrides = [
        *(set_ or []),
        *(f"{path}={json.dumps(value, ensure_ascii=False)}" for path, value in shortcuts.items() if value is not None),
    ]

    def say_how_to_go_on() -> None:
        command = shlex.join(["python", "-m", "orchestrator.grid", *sys.argv[1:]])
        make_console(stderr=as_json).out(f"interrupted; to go on from here: {command}")

    def leave() -> None:
        """Before training and after it: an exception might come up inside a library, which may swallow it."""
        try:
            make_console(stderr=as_json).show_cursor()  # the live table hides it
            say_how_to_go_on()
            if as_json:
                write(error_document("interrupted", "interrupted before it came to its end", INTERRUPTED))
        finally:  # also if the line cannot be printed, or at a second signal
            exit_at_once(INTERRUPTED)

    with exit_on_bad_input(), on_signals(leave):
        folder = os.path.dirname(spec or "") or "."
        options = Options(plan, as_json, share_epochs, takeover, keep, mlflow, keep_checkpoints, folder, serve)
        options = replace(options, show=show, suggest=suggest, again=_without_suggest(sys.argv[1:]))
        if show and not plan:
            raise BadInput("--show must stand with --plan: the page of a run shows the same picture")
        if not plan and not suggest:
            end_whoever_reads()
        status = orchestrate(read_spec(spec, overrides, added_points(points or [])), options)
        if status == INTERRUPTED:
            say_how_to_go_on()
        raise SystemExit(status)


def _without_suggest(arguments: list[str]) -> str:
    """The command that was typed, but for what makes it suggest and print JSON."""
    places = [i for i, each in enumerate(arguments) if each == "--suggest"]
    dropped = {*places, *(i + 1 for i in places)}
    kept = [each for i, each in enumerate(arguments) if i not in dropped and each != "--json"]
    kept = [each for each in kept if not each.startswith("--suggest=")]
    return shlex.join(["python", "-m", "orchestrator.grid", *kept])


if __name__ == "__main__":
    run_command(main)
