"""Aftermath: a grid that can be broken on purpose, and what must hold of its run folder afterwards."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from waiting import WAIT_S, pause

from orchestrator.runs.folder import Run
from orchestrator.runs.result import Result
from orchestrator.store import open_store

# four trials of seconds, which serve eight points and train 64 epochs, and a checkpoint five times a second
GRID = (
    *("--set", "grid={batch_size: [32, 64], dropout: [0.0, 0.5], epochs: [4, 16]}"),
    *("--set", "data.image_size=16", "--set", "train.checkpoint_every_s=0.2"),
)
POINTS, TRIALS = 8, 4
LONGER = (*GRID, "--set", "seeds=[0, 1, 2]")  # three times as much: the same trials, and others
_MARK = "ORCHESTRATOR_FAULTS_MARK"
_GONE_S = 90.0  # Ray's helpers that were just starting look for their node for a minute


class Driver:
    """The grid command in a process of its own; all that it starts, directly or not, can be told by its mark.

    env: added to this process's environment.
    """

    def __init__(self, cwd: Path, *args: str, env: dict[str, str] | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self.temporary = (env or {}).get("TMPDIR")
        self.lines: list[str] = []
        self.crippled = False  # set by whoever killed a part of its Ray
        self._waiting: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.grid", *args],
            cwd=cwd,
            env={**os.environ, **(env or {}), _MARK: self.mark},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.pid = self._process.pid
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._waiting.put(line.rstrip("\n"))
        self._waiting.put(None)

    def until(self, start: str, count: int = 1, wait_s: float = WAIT_S) -> str:
        """Wait for `count` lines that begin so; returns the last. Raises AssertionError where it ends before."""
        for _ in range(count):
            while not self._next(wait_s).startswith(start):
                pass
        return self.lines[-1]

    def _next(self, wait_s: float) -> str:
        line = self._waiting.get(timeout=wait_s)
        assert line is not None, f"ended with {self._process.wait()}:\n{self.out}"
        self.lines.append(line)
        return line

    @property
    def out(self) -> str:
        return "\n".join(self.lines)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, wait_s: float = 600.0) -> int:
        """Wait for the end; returns the exit status. `out` is whole then."""
        status = self._process.wait(wait_s)
        while (line := self._waiting.get(timeout=10)) is not None:
            self.lines.append(line)
        self._waiting.put(None)
        return status

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.end()

    def processes(self) -> list[int]:
        """What it started, directly or not, itself left out."""
        return [pid for pid in marked(self.mark) if pid != self.pid]

    def workers(self, at_work: bool = True) -> list[int]:
        """Process ids of its workers. at_work: those that have their node's cache open, so are about to train."""
        found = []
        for pid in marked(self.mark):
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{pid}/maps").read_text()
                if "images.u8" in maps if at_work else "_pywrap_tensorflow" in maps:
                    found.append(pid)
        return found


@contextlib.contextmanager
def driving(cwd: Path, *args: str, env: dict[str, str] | None = None) -> Iterator[Driver]:
    """A driver that is ended with all its processes, whatever the test comes to."""
    driver = Driver(cwd, *args, env=env)
    try:
        yield driver
    finally:
        if driver.running:
            driver.kill()
            for pid in marked(driver.mark):
                hit(pid)


def hit(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process that may have ended since it was looked for."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def marked(mark: str) -> list[int]:
    """Processes that have this mark in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                if f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
    return found


def gone(mark: str) -> list[int]:
    """Those that are left of a driver's processes, given the time to notice that it ended."""
    deadline = time.monotonic() + _GONE_S
    while (left := marked(mark)) and time.monotonic() < deadline:
        pause(0.1)
    return left


@dataclass(frozen=True)
class Undisturbed:
    """What the same grid comes to when nothing happens to it: where, trial id -> result, and the ids of the points."""

    uri: str
    results: dict[str, Result]
    points: set[str]


def undisturbed(uri: str) -> Undisturbed:
    board = read_board(uri)
    return Undisturbed(uri, Run(open_store(uri)).read_results(), set(board.point_id))


def read_board(uri: str) -> pd.DataFrame:
    from orchestrator.display.opening import read_board

    return read_board(uri).to_pandas()


def check(uri: str, expected: Undisturbed, failed: int = 0) -> str:
    """What must hold of a run folder after any fault; returns what was lost, for the table.

    All points stand in the board once; every ok one has the weights of the undisturbed run; nothing half-made is left.
    failed: points that may have failed.
    """
    board, results = read_board(uri), Run(open_store(uri)).read_results()
    assert board.point_id.is_unique
    assert set(board.point_id) == expected.points
    assert (board.status == "failed").sum() == failed
    assert (board.status == "ok").sum() == len(expected.points) - failed
    assert set(board[board.status == "ok"].trial_id) <= set(results)
    for trial_id, result in results.items():
        assert result.digests.items() <= expected.results[trial_id].digests.items(), trial_id
    if "://" not in uri:
        left = [str(path) for path in Path(uri).rglob("*") if ".tmp" in path.name or path.name == "owner.json"]
        assert left == []
    else:
        assert not open_store(uri).exists("owner.json")
    return "nothing" if not failed else f"{failed} points failed, and say why"


def check_longer(cwd: Path, env: dict[str, str], expected: Undisturbed) -> str:
    """As `check`, after LONGER: GRID itself has nothing left to train, and leads back to the undisturbed board."""
    with driving(cwd, *GRID, env=env) as again:
        assert again.end() == 0, again.out
    assert not any(line.startswith("epoch ") for line in again.lines)
    run = cwd / "runs" / "shirts"
    for path in (run / "trials").glob("*.json"):
        if path.name.partition("-")[0] not in expected.results:
            path.unlink()
    return check(str(run), expected)


def finished(run: Path) -> dict[str, int]:
    """Result files and when each was written: a trial that is trained twice would change one."""
    return {path.name: path.stat().st_mtime_ns for path in (run / "trials").glob("*.json")}


def clean(driver: Driver) -> None:
    """Nothing of the driver runs any more, and neither it nor those before it left anything in its temporary folder."""
    left = gone(driver.mark)
    assert left == [], [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
    assert list(Path(driver.temporary).glob("*orchestrator-*")) == []


def seed() -> int:
    """A new one each time, or that of a run to repeat: FAULTS_SEED. A failing test shows it."""
    number = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"FAULTS_SEED={number}")
    return number
