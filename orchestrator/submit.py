"""Submit: a spec on this machine -> a job on a cluster, followed to its end. Wraps `ray job submit`."""

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import BadInput, exit_on_bad_input, run_command
from orchestrator.grid import INTERRUPTED, read_spec
from orchestrator.spec import Spec

# besides what .gitignore names, which Ray leaves out itself
EXCLUDES = [".git", ".venv", "venv", "runs", "build", "dist", "__pycache__", "*.egg-info", "tests", "infra"]


def command(spec: Spec, path: str, arguments: Sequence[str], job: str) -> list[str]:
    """The words of `ray job submit`, but for the address and the token, which its environment holds. Pure.

    path: the spec's, from the current folder, which goes along. arguments: further ones of orchestrator.grid.
    Raises BadInput where data or output would be a folder of this machine.
    """
    for field, uri, cure in (("data.uri", spec.data.uri, "--data"), ("output", spec.output, "--output")):
        if "://" not in uri and not os.path.isabs(uri):
            raise BadInput(
                f"{field} must be a bucket, or a full path that every node of the cluster shares, got {uri}: "
                f"add {cure} s3://BUCKET/PREFIX"
            )
    # stopped, it is interrupted as by Ctrl-C and has time to put its tables in order
    stop = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    env = json.dumps({"excludes": EXCLUDES, "env_vars": stop})
    head = ["job", "submit", "--submission-id", job, "--working-dir", ".", "--runtime-env-json", env]
    return [*head, "--", "python", "-m", "orchestrator.grid", path, *arguments]


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
) -> None:
    """Train a grid on a cluster. Ctrl-C leaves it running; the same command again is the resume.

    The token is that of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. Further options go to the grid.
    """
    with exit_on_bad_input():
        if not re.fullmatch(r"https?://[^\s/]+(/.*)?", address):
            raise BadInput(
                f"--address must be the cluster's dashboard, such as http://127.0.0.1:8265, got "
                f"{address or 'nothing'}: give it, or set RAY_API_SERVER_ADDRESS"
            )
        if Path.cwd() not in Path(spec).resolve().parents:
            raise BadInput(f"SPEC must lie in the current folder, which goes to the cluster, got {spec}")
        path = str(Path(spec).resolve().relative_to(Path.cwd()))
        shortcuts = {"data.uri": data, "output": output}
        changes = [*(set_ or []), *(f"{k}={json.dumps(v)}" for k, v in shortcuts.items() if v is not None)]
        checked = read_spec(path, changes)
        job = f"{checked.name.replace('.', '-')}-{secrets.token_hex(4)}"
        arguments = [word for change in changes for word in ("--set", change)] + context.args
        line = command(checked, path, arguments, job)
        raise SystemExit(_follow(line, job, address))


def _follow(line: list[str], job: str, address: str) -> int:
    """Submit, show what the job prints, and return its exit status: the grid's own, 130 where it was stopped."""
    ray = str(Path(sys.executable).with_name("ray"))
    env = {**os.environ, "RAY_API_SERVER_ADDRESS": address, "NO_COLOR": "1"}
    token = Path(env.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if env.get("RAY_AUTH_TOKEN") or token.is_file():
        env.setdefault("RAY_AUTH_MODE", "token")
    # in a session of its own, Ctrl-C does not reach it: it is ended when there is something to say
    follower = subprocess.Popen([ray, *line], env=env, start_new_session=True)
    try:
        status = follower.wait()
    except KeyboardInterrupt:
        follower.terminate()
        follower.wait()
        print(f"\n{_ways(job, address)}", file=sys.stderr)
        return INTERRUPTED
    told = subprocess.run([ray, "job", "status", job], env=env, capture_output=True, text=True, check=False)
    text = told.stdout + told.stderr
    if "was stopped" in text:
        return INTERRUPTED
    code = re.search(r"exit code (\d+)", text)
    return int(code[1]) if status and code else status


def _ways(job: str, address: str) -> str:
    at = f"--address {shlex.quote(address)} {job}"
    return (
        f"{job} goes on without you.\n  come back  ray job logs --follow {at}\n  stop       ray job stop {at}\n"
        f"  resume     the same command again, once it has stopped, failed or used up its budget"
    )


if __name__ == "__main__":
    run_command(main, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
