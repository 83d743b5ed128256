"""Submit: the words of `ray job submit`, and following a job to its end."""

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import INTERRUPTED, BadInput
from orchestrator.spec.sections import Spec
from orchestrator.terminal import make_console

# besides what .gitignore names, which Ray leaves out itself
EXCLUDES = [".git", ".venv", "venv", "runs", "build", "dist", "__pycache__", "*.egg-info", "tests", "infra"]


def submit(spec: Spec, path: str, arguments: Sequence[str], address: str, to_stderr: bool = False) -> tuple[str, int]:
    """Run a grid as a job on the cluster at `address`, its dashboard. Returns the job's id and the grid's exit status.

    path: the spec's, from the current folder, which goes along. arguments: further ones of orchestrator.grid.
    to_stderr: where what the job prints goes, in place of stdout. Raises BadInput.
    """
    if not re.fullmatch(r"https?://[^\s/]+(/.*)?", address):
        raise BadInput(
            f"--address must be the cluster's dashboard, such as http://127.0.0.1:8265, got "
            f"{address or 'nothing'}: give it, or set RAY_API_SERVER_ADDRESS"
        )
    job = f"{spec.name.replace('.', '-')}-{secrets.token_hex(4)}"
    return job, follow(command(spec, path, arguments, job), job, address, to_stderr)


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


def follow(line: list[str], job: str, address: str, to_stderr: bool = False) -> int:
    """Submit, show what the job prints, and return its exit status: the grid's own, 130 where it was stopped."""
    ray = str(Path(sys.executable).with_name("ray"))
    env = {**os.environ, "RAY_API_SERVER_ADDRESS": address, "NO_COLOR": "1"}
    token = Path(env.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if env.get("RAY_AUTH_TOKEN") or token.is_file():
        env.setdefault("RAY_AUTH_MODE", "token")
    # in a session of its own, Ctrl-C does not reach it: it is ended when there is something to say
    follower = subprocess.Popen([ray, *line], env=env, stdout=2 if to_stderr else None, start_new_session=True)
    try:
        status = follower.wait()
    except KeyboardInterrupt:
        follower.terminate()
        follower.wait()
        make_console(stderr=True).out("", *_ways(job, address))
        return INTERRUPTED
    told = subprocess.run([ray, "job", "status", job], env=env, capture_output=True, text=True, check=False)
    text = told.stdout + told.stderr
    if "was stopped" in text:
        return INTERRUPTED
    code = re.search(r"exit code (\d+)", text)
    return int(code[1]) if status and code else status


def _ways(job: str, address: str) -> list[str]:
    at = f"--address {shlex.quote(address)} {job}"
    return [
        f"{job} goes on without you.",
        f"  come back  ray job logs --follow {at}",
        f"  stop       ray job stop {at}",
        "  resume     the same command again, once it has stopped, failed or used up its budget",
    ]
