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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    """

    address: str
    token: str = field(repr=False)

    def env(self) -> dict[str, str]:
        """Environment variables of a client that may submit jobs here."""
        return {"RAY_API_SERVER_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}


@contextlib.contextmanager
def head(
    folder: Path,
    cpus: int = 2,
    env: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    node_types: dict[str, Any] | None = None,
    gpus: int = 0,
) -> Iterator[Head]:
    """Start a head with its session below `folder`, wait until it takes jobs, and end all its processes.

    env: what the head and its workers find in their environment, such as the way to a bucket.
    labels: the head's Ray labels. gpus: how many it says to have.
    node_types: as in the file of a `ray up` cluster: then the autoscaler runs, and a node is a set of processes here.
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
        f"--num-gpus={gpus}",
    ]
    if labels:
        command.append(f"--labels={','.join(f'{name}={value}' for name, value in labels.items())}")
    if node_types:
        config = folder / "autoscaler.json"
        config.write_text(json.dumps(_fake_cluster(cpus, node_types, f"127.0.0.1:{gcs}")))
        command.append(f"--autoscaling-config={config}")
        env = {**_FAKE, **(env or {})}
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
