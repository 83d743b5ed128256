"""A real Ray head on loopback with token authentication, for tests and benchmarks. Owns its processes."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

READY_S = 60.0
RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True, slots=True)
class Head:
    """A running head.

    Attributes:
        address: "http://127.0.0.1:PORT", where jobs are submitted.
        token: What every client must bring.
        gcs: "IP:PORT", where nodes and drivers join.
        pid: Its process, and the group of all that it started.
    """

    address: str
    token: str = field(repr=False)
    gcs: str = ""
    pid: int = 0

    def env(self) -> dict[str, str]:
        """Environment variables of a client that may submit jobs here."""
        return {"RAY_API_SERVER_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}


@contextlib.contextmanager
def head(folder: Path, cpus: int = 2, env: dict[str, str] | None = None, ip: str = "127.0.0.1") -> Iterator[Head]:
    """Start a head with its session below `folder`, wait until it takes jobs, and end all its processes.

    env: what the head and its workers find in their environment, such as the way to a bucket. ip: where nodes join.
    Raises RuntimeError with the log where it does not come up within READY_S.
    """
    gcs, dashboard, client, agent, agent_grpc = _free_ports(5)
    token = secrets.token_hex(16)
    log = folder / "head.log"
    command = [
        *(RAY, "start", "--head", "--block", f"--node-ip-address={ip}", "--dashboard-host=127.0.0.1"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"),
        *(f"--num-cpus={cpus}", f"--temp-dir={folder / 'ray'}", "--disable-usage-stats"),
    ]
    address = f"http://127.0.0.1:{dashboard}"
    process = _start(command, log, {**(env or {}), **Head(address, token).env()})
    server = Head(address, token, f"{ip}:{gcs}", process.pid)
    try:
        _wait_until_ready(process, server, log)
        yield server
    finally:
        _end(process)


@contextlib.contextmanager
def node(server: Head, folder: Path, env: dict[str, str], cpus: int = 1, within: Sequence[str] = ()) -> Iterator[int]:
    """Start a node and wait until it has joined the head; gives its process id, that of its group too, and ends it.

    within: words before the command, such as those that lead into a network namespace; the last is then its address.
    """
    before, ip = (within[:-1], within[-1]) if within else ((), "127.0.0.1")
    (agent,) = _free_ports(1)
    command = [
        *(*before, RAY, "start", "--block", f"--address={server.gcs}", f"--node-ip-address={ip}"),
        *(f"--num-cpus={cpus}", f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"),
    ]
    log = folder / f"node-{agent}.log"
    process = _start(command, log, {**env, **server.env()})
    try:
        for _ in range(int(READY_S * 4)):  # two that start at once on one machine may take each other's ports
            if "will now block forever" in log.read_text():
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise RuntimeError(f"the node ended with {process.wait(0.25)}: {log.read_text()[-2000:]}")
        yield process.pid
    finally:
        _end(process)


def ask(server: Head, path: str, body: dict | None = None) -> dict:
    """One request to the head's API of jobs, as `ray job` makes it."""
    request = urllib.request.Request(
        f"{server.address}/api/jobs/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _start(command: Sequence[str], log: Path, env: dict[str, str]) -> subprocess.Popen:
    path = f"{Path(RAY).parent}:{os.environ['PATH']}"
    with log.open("wb") as out:
        return subprocess.Popen(
            command, env={**os.environ, "PATH": path, **env}, stdout=out, stderr=out, start_new_session=True
        )


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def _wait_until_ready(process: subprocess.Popen, server: Head, log: Path) -> None:
    request = urllib.request.Request(f"{server.address}/api/jobs/", headers={"Authorization": f"Bearer {server.token}"})
    for _ in range(int(READY_S * 2)):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        if process.returncode is not None:
            break
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=5) as answer:
            if answer.status == 200:
                return
    raise RuntimeError(f"the Ray head did not come up: {log.read_text()[-2000:]}")
