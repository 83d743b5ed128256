"""A real Ray head on loopback with token authentication, for tests and benchmarks. Owns its processes."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seaweedfs import free_ports

READY_S = 60.0
RAY = str(Path(sys.executable).with_name("ray"))
HEAD_ID = "f" * 51 + "0" * 5
# As `ray up` starts a head, which has the second autoscaler by default
_FAKE = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "RAY_NODE_TYPE_NAME": "ray.head.default",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}


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
def head(
    folder: Path,
    cpus: int = 2,
    env: dict[str, str] | None = None,
    ip: str = "127.0.0.1",
    labels: dict[str, str] | None = None,
    node_types: dict[str, Any] | None = None,
    gpus: int = 0,
) -> Iterator[Head]:
    """Start a head with its session below `folder`, wait until it takes jobs, and end all its processes.

    env: what the head and its workers find in their environment, such as the way to a bucket. ip: where nodes join.
    labels: the head's Ray labels. gpus: how many it says to have.
    node_types: as in the file of a `ray up` cluster: then the autoscaler runs, and a node is a set of processes here.
    Raises RuntimeError with the log where it does not come up within READY_S.
    """
    gcs, dashboard, client, agent, agent_grpc = free_ports(5)
    token = secrets.token_hex(16)
    log = folder / "head.log"
    command = [
        *(RAY, "start", "--head", "--block", f"--node-ip-address={ip}", "--dashboard-host=127.0.0.1"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"),
        *(f"--num-cpus={cpus}", f"--temp-dir={folder / 'ray'}", "--disable-usage-stats"),
        f"--num-gpus={gpus}",
    ]
    if labels:
        command.append(f"--labels={','.join(f'{name}={value}' for name, value in labels.items())}")
    if node_types:
        config = folder / "autoscaler.json"
        config.write_text(json.dumps(_fake_cluster(cpus, node_types, f"{ip}:{gcs}")))
        command.append(f"--autoscaling-config={config}")
        env = {**_FAKE, **(env or {})}
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
    """Start a node, wait until it has joined the head, yield its process id, which is also its group's, and end it.

    within: words before the command, such as those that lead into a network namespace; the last is then its address.
    """
    before, ip = (within[:-1], within[-1]) if within else ((), "127.0.0.1")
    (agent,) = free_ports(1)
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


def submit(server: Head, working_dir: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit` of the grid command with this folder, followed to its end."""
    line = [RAY, "job", "submit", "--working-dir", ".", "--", "python", "-m", "orchestrator.grid", *args]
    env = {**os.environ, **server.env()}
    return subprocess.run(line, cwd=working_dir, env=env, text=True, capture_output=True, timeout=300, check=False)


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
        process.wait(5)  # it seldom ends by itself
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _fake_cluster(cpus: int, node_types: dict[str, Any], gcs_address: str) -> dict[str, Any]:
    """What `ray up` would write for the autoscaler, with the provider that starts nodes on this machine."""
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "tests",
        "max_workers": 8,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.1,
        "provider": {
            # by its name, for the wheel lacks what the type fake_multinode would read
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": gcs_address,
        },
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0},
            **node_types,
        },
        **{f"{name}_commands": [] for name in commands},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
    }


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
