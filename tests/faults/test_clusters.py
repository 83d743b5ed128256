"""Clusters that lose nodes, drivers and their head; real `ray start` processes with token authentication."""

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aftermath import GRID, Undisturbed, check, check_longer, driving, finished, gone, marked, seed
from cluster import Head, ask, head, node
from waiting import eventually, pause

Note = Callable[[str, object, str], None]
# twice as much again, so that there is work left for a node that joins, or comes back
LONG = (*GRID, "--set", "seeds=[0, 1, 2, 3, 4, 5]")


def kill_all(group: int) -> None:
    """As a machine that vanishes: nobody gets to clean up."""
    os.killpg(group, signal.SIGKILL)


def cache_of(folder: Path, name: str) -> dict[str, str]:
    """A node's environment: a cache folder of its own."""
    return {"ORCHESTRATOR_CACHE_DIR": str(folder / name)}


def has_cache(folder: Path, name: str) -> bool:
    return any((folder / name).glob("*/meta.json"))


@pytest.mark.long
def test_node_lost_and_joined(
    quiet: Undisturbed, tmp_path: Path, short: Callable[[], Path], env: dict[str, str], tried: Note
) -> None:
    """Of three nodes one vanishes in mid-epoch, and later another joins and trains too: the run ends complete."""
    folder = short()
    with contextlib.ExitStack() as up:
        server = up.enter_context(head(folder, cpus=0))
        first = up.enter_context(node(server, folder, cache_of(tmp_path, "one")))
        up.enter_context(node(server, folder, cache_of(tmp_path, "two")))
        driver = up.enter_context(driving(tmp_path, *LONG, env={**env, **server.env(), "RAY_ADDRESS": server.gcs}))
        driver.until("epoch ", 20)
        assert eventually(lambda: has_cache(tmp_path, "one") and has_cache(tmp_path, "two"))
        kill_all(first)
        up.enter_context(node(server, folder, cache_of(tmp_path, "three")))
        assert driver.end() == 0, driver.out
    assert has_cache(tmp_path, "three"), "the node that joined took part"
    tried("node lost in the middle of an epoch, another joined", 1, check_longer(tmp_path, env, quiet))


@pytest.fixture
def hosts() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The address of this host and two network namespaces, as (name, address), on a bridge of their own."""
    tag, net = secrets.token_hex(2), f"10.{random.randrange(64, 128)}.{random.randrange(256)}"
    spaces = [(f"f{tag}{i}", f"{net}.{i + 2}") for i in range(2)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        ip("link", "add", f"b{tag}", "type", "bridge")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces must be permitted to this user: {getattr(error, 'stderr', error)}")
    try:
        ip("addr", "add", f"{net}.1/24", "dev", f"b{tag}")
        ip("link", "set", f"b{tag}", "up")
        for name, address in spaces:
            ip("netns", "add", name)
            ip("link", "add", f"v{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"v{name}", "master", f"b{tag}", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield f"{net}.1", spaces
    finally:
        for name, _ in spaces:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", f"b{tag}"], capture_output=True, check=False)


@pytest.mark.long
def test_host_cut_off(
    quiet: Undisturbed,
    tmp_path: Path,
    short: Callable[[], Path],
    env: dict[str, str],
    hosts: tuple[str, list[tuple[str, str]]],
    tried: Note,
) -> None:
    """One of two hosts with addresses of their own is cut off the network for 30 s and let back."""
    here, spaces = hosts
    folder = short()
    (name, _), *_ = spaces
    with contextlib.ExitStack() as up:
        server = up.enter_context(head(folder, cpus=0, ip=here))
        for space, address in spaces:
            lead = ("ip", "netns", "exec", space, address)
            up.enter_context(node(server, folder, cache_of(tmp_path, space), within=lead))
        driver = up.enter_context(driving(tmp_path, *LONG, env={**env, **server.env(), "RAY_ADDRESS": server.gcs}))
        driver.until("epoch ", 20)
        assert eventually(lambda: all(has_cache(tmp_path, space) for space, _ in spaces))
        subprocess.run(["ip", "link", "set", f"v{name}", "down"], check=True)
        pause(30)
        subprocess.run(["ip", "link", "set", f"v{name}", "up"], check=True)
        assert driver.end() == 0, driver.out
    tried("host cut off the network for 30 s and reconnected", 1, check_longer(tmp_path, env, quiet))


class Job:
    """The grid submitted as a job; its processes are told by their mark. env: as a job brings it in `runtime_env`."""

    def __init__(self, server: Head, cwd: Path, *args: str, env: dict[str, str]) -> None:
        self._server, self.mark = server, secrets.token_hex(16)
        command = [sys.executable, "-m", "orchestrator.grid", *args, "--output", str(cwd / "runs")]
        variables = {**env, "ORCHESTRATOR_FAULTS_MARK": self.mark}
        entrypoint = " ".join(f"'{word}'" for word in command)
        body = {"entrypoint": entrypoint, "runtime_env": {"env_vars": variables}}
        self.id = ask(server, "", body)["submission_id"]

    def state(self) -> str:
        return ask(self._server, self.id)["status"]

    def log(self) -> str:
        return ask(self._server, f"{self.id}/logs")["logs"]

    def drivers(self) -> list[int]:
        """Its driver, and the shell around it."""
        found = []
        for pid in marked(self.mark):
            with contextlib.suppress(OSError):
                if b"orchestrator.grid" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def at_work(self) -> bool:
        return "\nepoch " in self.log() or self.state() not in ("PENDING", "RUNNING")

    def stop(self) -> None:
        ask(self._server, f"{self.id}/stop", {})

    def end(self) -> str:
        eventually(lambda: self.state() not in ("PENDING", "RUNNING"), 240)
        return self.state()


@pytest.mark.long
def test_jobs_and_head(
    quiet: Undisturbed,
    tmp_path: Path,
    short: Callable[[], Path],
    caches: Path,
    tries: Callable[[int], int],
    tried: Note,
) -> None:
    """A job's driver is killed again and again, the job stopped in two ways, the head killed: another ends the run."""
    draw, killed = random.Random(seed()), []
    run = tmp_path / "runs" / "shirts"
    args = (*GRID, "--set", "train.checkpoint_every_s=3600")  # so that a stop alone writes one
    env = {"ORCHESTRATOR_CACHE_DIR": str(caches)}
    patient = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    folder = short()
    with head(folder) as server:
        for _ in range(tries(5)):
            before = finished(run)
            job = Job(server, tmp_path, *GRID, env=env)
            eventually(job.drivers)
            pause(draw.uniform(0, 10))
            for pid in job.drivers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert job.end() in ("FAILED", "SUCCEEDED")
            killed.append(job.mark)
            assert before.items() <= finished(run).items()

        assert [gone(mark) for mark in killed] == [[]] * len(killed)

        for more in ({}, patient):
            job = Job(server, tmp_path, *args, "--name", "stopped", env={**env, **more})
            eventually(job.at_work)
            job.stop()
            assert job.end() == "STOPPED"
            assert gone(job.mark) == []
            if more:
                assert "interrupted; to go on from here: python -m orchestrator.grid --set" in job.log()
        assert len(list((tmp_path / "runs/stopped/checkpoints").iterdir())) >= 2, "of both trials in training"
        tried("`ray job stop`: killed after 3 s; given 60 s", "1 + 1", "nothing")
        os.killpg(server.pid, signal.SIGKILL)
    with head(short()) as server:
        job = Job(server, tmp_path, *GRID, env=env)
        assert job.end() == "SUCCEEDED", job.log()
        lost = check(str(run), quiet)
        job = Job(server, tmp_path, *args, "--name", "stopped", env=env)
        assert job.end() == "SUCCEEDED", job.log()
        assert check(str(tmp_path / "runs/stopped"), quiet) == lost
    tried("driver killed at a random moment (`ray job submit`)", len(killed), lost)
    tried("head killed, a new cluster on the same run folder", 1, lost)
