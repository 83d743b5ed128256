"""Report: `python -m orchestrator.report RUN` writes report.html into the run folder again."""

from typing import Annotated

import typer

from orchestrator.display.page import write_page
from orchestrator.errors import end_whoever_reads, exit_on_bad_input, run_command
from orchestrator.runs.folder import Run
from orchestrator.store import open_store
from orchestrator.terminal import make_console


def main(run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder: a path or s3:// address.")]) -> None:
    """Write report.html into the run folder: one page that opens without a network."""
    end_whoever_reads()
    with exit_on_bad_input():
        make_console().out(write_page(Run(open_store(run))))


if __name__ == "__main__":
    run_command(main)
