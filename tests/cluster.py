"""A real Ray head on loopback with token authentication, for tests and benchmarks. Owns its processes."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
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
    """

    address: str
    token: str = field(repr=False)

    def env(self) -> dict[str, str]:
        """Environment variables of a client that may submit jobs here."""
        return {"RAY_API_SERVER_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}


@contextlib.contextmanager
def head(folder: Path, cpus: int = 2, env: dict[str, str] | None = None) -> Iterator[Head]:
    """Start a head with its session below `folder`, wait until it takes jobs, and end all its processes.

    env: what the head and its workers find in their environment, such as the way to a bucket.
    Raises RuntimeError with the log where it does not come up within READY_S.
    """
    gcs, dashboard, client, agent, agent_grpc = _free_ports(5)
    server = Head(f"http://127.0.0.1:{dashboard}", secrets.token_hex(16))
    log = folder / "head.log"
    command = [
        *(RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"),
        *(f"--num-cpus={cpus}", f"--temp-dir={folder / 'ray'}", "--disable-usage-stats"),
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}", **(env or {}), **server.env()},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, server, log)
        yield server
    finally:
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
