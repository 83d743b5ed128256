"""Report: `python -m orchestrator.report RUN` writes report.html into the run folder again, or serves it."""

import contextlib
import threading
from typing import Annotated

import typer

from orchestrator.display.page import gather, write_page
from orchestrator.display.serving import serving
from orchestrator.documents import document
from orchestrator.errors import BadInput, end_whoever_reads, exit_on_bad_input, run_command
from orchestrator.runs.folder import Run
from orchestrator.store import open_store
from orchestrator.terminal import make_console, write


def main(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder: a path or s3:// address.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: see docs/json.md.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page on this machine, as the run goes on, until Ctrl-C.")
    ] = False,
) -> None:
    """Write report.html into the run folder: one page that opens without a network."""
    end_whoever_reads()
    console = make_console()
    with exit_on_bad_input():
        if serve and as_json:
            raise BadInput("--serve has no document to print: leave --json or --serve out")
        folder = Run(open_store(run))
        if serve:
            gather(folder)  # what cannot be shown is refused at once
            with contextlib.suppress(KeyboardInterrupt), serving(folder) as address:
                console.out(f"{address}  (Ctrl-C ends it)")
                threading.Event().wait()
            return
        page = write_page(folder)
    if as_json:
        write(document("report", run=folder.store.uri, page=page))
    else:
        console.out(page)


if __name__ == "__main__":
    run_command(main)
