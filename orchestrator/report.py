"""Report: `python -m orchestrator.report RUN` writes report.html into the run folder again, or serves it."""

import threading
from typing import Annotated

import typer

from orchestrator.display.page import write_page
from orchestrator.display.serving import serving
from orchestrator.errors import exit_on_bad_input, run_command
from orchestrator.runs.folder import Run
from orchestrator.store import open_store
from orchestrator.terminal import make_console


def main(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder: a path or s3:// address.")],
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page on this machine, as the run goes on, until Ctrl-C.")
    ] = False,
) -> None:
    """Write report.html into the run folder: one page that opens without a network."""
    console = make_console()
    with exit_on_bad_input():
        if not serve:
            console.out(write_page(Run(open_store(run))))
            return
        try:
            with serving(Run(open_store(run))) as address:
                console.out(f"{address}  (Ctrl-C ends it)")
                threading.Event().wait()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    run_command(main)
