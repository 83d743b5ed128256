"""Report: `python -m orchestrator.report RUN` writes report.html into the run folder again."""

from typing import Annotated

import typer

from orchestrator.display.page import write_page
from orchestrator.documents import document
from orchestrator.errors import exit_on_bad_input, run_command
from orchestrator.runs.folder import Run
from orchestrator.store import open_store
from orchestrator.terminal import make_console, write


def main(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder: a path or s3:// address.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: see docs/json.md.")] = False,
) -> None:
    """Write report.html into the run folder: one page that opens without a network."""
    with exit_on_bad_input():
        folder = Run(open_store(run))
        page = write_page(folder)
    if as_json:
        write(document("report", run=folder.store.uri, page=page))
    else:
        make_console().out(page)


if __name__ == "__main__":
    run_command(main)
