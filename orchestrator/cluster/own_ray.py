"""Own Ray: a Ray of this machine alone: how much of it trials get, where its files lie, and that none of them stays."""

import contextlib
import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator import machine
from orchestrator.errors import BadInput
from orchestrator.spec.sections import Resources

_RAY_MB = 1000  # what Ray and the driver take: 730 MB, measured
_LONGEST = 107 - len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")  # a socket's path: 107

_ROOM_MB = 50  # its logs
_LOOPBACK = "127.0.0.1"  # where its parts listen; Ray starts on no other loopback address


class Share(NamedTuple):
    """How many trials run at once on this machine, at least 1, and why no more, where it is not its cores."""

    slots: int
    why: str


def share(resources: Resources, worker_mb: float) -> Share:
    """What its cores allow, and its memory. worker_mb: what the largest trial may take of that."""
    by_cores = max(1, machine.cpus() // resources.cpus_per_trial)
    free_mb = machine.free_mb()
    by_memory = max(1, int(min((free_mb - _RAY_MB) / worker_mb, by_cores)))
    wanted = min(by_cores, resources.max_concurrent or by_cores)
    needs, has = f"{worker_mb / 1000:.1f} GB", f"{free_mb / 1000:.1f}"
    why = f" (its cores would do for {wanted}, but each takes up to {needs}, of {has} free)"
    return Share(by_memory, why if by_memory < wanted else "")


def settings(cpus: int) -> dict[str, Any]:
    """What ray.init is to be told, to have so many CPUs for trials. Raises BadInput where it could not start."""
    _check_loopback()
    if not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # or Ray writes one into the home folder
    folder = _folder()
    own = {"include_dashboard": False, "num_cpus": cpus, "_temp_dir": str(folder)}
    own["_system_config"] = {
        # or two processes start for each CPU: one before there is a trial, and one for the trial
        "prestart_worker_first_driver": False,
        # its metrics would go to an agent that is not there
        "enable_metrics_collection": False,
        # parts that start together find each other at the second try: Ray would wait for a second before that
        "raylet_client_connect_timeout_milliseconds": 20,
        "raylet_client_num_connect_attempts": 500,
    }
    return own if os.access("/dev/shm", os.W_OK) else own | {"_plasma_directory": str(folder.parent)}


def remove(session: Path) -> None:
    """Remove what it left of its session, once it has ended."""
    shutil.rmtree(session, ignore_errors=True)
    latest = session.parent / "session_latest"
    with contextlib.suppress(OSError):
        if not latest.exists():  # it led there
            latest.unlink()


def _check_loopback() -> None:
    """ray.init would try for minutes, and then tell of a file that is not there."""
    try:
        with socket.create_server((_LOOPBACK, 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise BadInput(
            f"Ray must reach {_LOOPBACK} to start here, and this machine does not ({why}): bring it up, with "
            f"`ip link set lo up` and `ip addr add {_LOOPBACK}/8 dev lo`, or set RAY_ADDRESS to a cluster"
        ) from None


def _folder() -> Path:
    """Where its sessions lie: a folder for temporary files that takes some, and whose path is short enough."""
    for folder in (os.environ.get("RAY_TMPDIR", ""), os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp", "/dev/shm"):
        if os.path.isabs(folder) and len(os.fsencode(folder.rstrip("/"))) <= _LONGEST and _takes_files(folder):
            return Path(folder, "ray")
    raise BadInput(
        f"TMPDIR must be a folder that can be written, with {_ROOM_MB} MB free and a path of at most {_LONGEST} "
        f"characters, got {os.environ.get('TMPDIR') or 'none'}, and /tmp is none either: set it to such a folder"
    )


def _takes_files(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return shutil.disk_usage(folder).free >= _ROOM_MB * 1e6
    except OSError:
        return False
