"""Pack: `python -m orchestrator.pack SRC DST`: a folder of images -> Parquet shards."""

import shlex
import sys
from typing import Annotated

import typer

from orchestrator.data.pack import INTERRUPTED, pack
from orchestrator.documents import document
from orchestrator.errors import end_whoever_reads, exit_on_bad_input, run_command
from orchestrator.store import open_store
from orchestrator.terminal import make_console, write


def main(
    src: Annotated[str, typer.Argument(help="Images as <class>/<image>: a folder or s3:// address.")],
    dst: Annotated[str, typer.Argument(help="Where the shards go: a folder or s3:// address outside SRC.")],
    shard_mb: Annotated[int, typer.Option(min=1, help="Images in one shard, in MB; memory grows with it.")] = 64,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be images.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: see docs/json.md.")] = False,
) -> None:
    """Pack images into Parquet shards: a bucket serves them faster. The same command again writes what is missing."""
    console = make_console(stderr=as_json)
    end_whoever_reads()
    with exit_on_bad_input():
        try:
            packed = pack(open_store(src), open_store(dst, create=True), shard_mb, skip_bad, console)
            if as_json:
                write(document("pack", **packed))
        except KeyboardInterrupt:
            command = shlex.join(["python", "-m", "orchestrator.pack", *sys.argv[1:]])
            console.out(f"interrupted; to go on from here: {command}")
            raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    run_command(main)
