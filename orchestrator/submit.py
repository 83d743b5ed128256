"""Submit: a spec on this machine -> a job on a cluster, followed to its end. Wraps `ray job submit`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cluster.submit import submit
from orchestrator.documents import document
from orchestrator.errors import BadInput, exit_on_bad_input, run_command
from orchestrator.spec.reading import read_spec
from orchestrator.terminal import write


def main(
    context: typer.Context,
    spec: Annotated[str, typer.Argument(help="YAML file, in the current folder or below it, which goes along.")],
    address: Annotated[
        str,
        typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, such as http://127.0.0.1:8265."),
    ] = "",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="As for the grid.")] = None,
    data: Annotated[str | None, typer.Option(metavar="URI", help="As for the grid.")] = None,
    output: Annotated[str | None, typer.Option(metavar="URI", help="As for the grid.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: see docs/json.md.")] = False,
) -> None:
    """Train a grid on a cluster. Ctrl-C leaves it running; the same command again is the resume.

    The token is that of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. Further options go to the grid.
    """
    with exit_on_bad_input():
        if Path.cwd() not in Path(spec).resolve().parents:
            raise BadInput(f"SPEC must lie in the current folder, which goes to the cluster, got {spec}")
        path = str(Path(spec).resolve().relative_to(Path.cwd()))
        shortcuts = {"data.uri": data, "output": output}
        changes = [*(set_ or []), *(f"{k}={json.dumps(v)}" for k, v in shortcuts.items() if v is not None)]
        arguments = [word for change in changes for word in ("--set", change)] + context.args
        read = read_spec(path, changes)
        job, status = submit(read, path, arguments, address, as_json)
    if as_json:
        run = f"{read.output.rstrip('/')}/{read.name}"
        write(document("job", job=job, address=address, run=run, exit_status=status))
    raise SystemExit(status)


if __name__ == "__main__":
    run_command(main, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
