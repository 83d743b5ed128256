"""lease: one driver at a time, with real processes that are refused, killed, stopped and taken over."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.errors import BadInput
from orchestrator.runs import lease as room
from orchestrator.runs.lease import Lease, refuse_if_held
from orchestrator.store import Store, open_store

pytestmark = pytest.mark.timeout(30)

DRIVER = """
import sys
from orchestrator.runs import lease
from orchestrator.store import open_store

folder, takeover, lease.RENEW_S, lease.STALE_S = sys.argv[1], sys.argv[2] == "takeover", 0.05, 30.0
try:
    with lease.Lease(open_store(folder), lambda: print("lost", flush=True), takeover):
        print("holds", flush=True)
        sys.stdin.readline()
    print("ended", flush=True)
except lease.BadInput as refused:
    print(f"refused: {refused}", flush=True)
"""

Driver = subprocess.Popen[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def store(folder: Path) -> Store:
    return open_store(str(folder))


@pytest.fixture
def drive(folder: Path) -> Iterator[Callable[..., Driver]]:
    """Start a process that takes the lease and holds it until it reads a line."""
    started: list[Driver] = []

    def start(takeover: bool = False) -> Driver:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(folder), "takeover" if takeover else ""],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def says(process: Driver) -> str:
    """The next line of a driver; the test's time limit bounds the wait."""
    return process.stdout.readline().rstrip("\n")


def let_end(process: Driver) -> str:
    process.stdin.write("\n")
    process.stdin.flush()
    return says(process)


def owner(folder: Path) -> dict:
    return json.loads((folder / "owner.json").read_text())


def brisk(monkeypatch: pytest.MonkeyPatch, stale_s: float) -> None:
    monkeypatch.setattr(room, "RENEW_S", 0.05)
    monkeypatch.setattr(room, "STALE_S", stale_s)


def test_a_second_driver_is_refused_and_told_who_is_at_work(drive, folder: Path):
    """Process, machine and since when; the first one goes on and lets go when it ends."""
    first = drive()
    assert says(first) == "holds"
    told = says(drive())
    assert told.startswith(f"refused: one driver at a time may write {folder}, and process {first.pid} on ")
    assert f" on {platform.node()} since {owner(folder)['since']} is at work on it" in told
    assert "--takeover" in told
    assert let_end(first) == "ended"
    assert not (folder / "owner.json").exists()


def test_a_killed_driver_is_followed_at_once(drive, folder: Path, store: Store, monkeypatch):
    """Its process is gone from this machine, so nobody waits for its lease to grow stale."""
    brisk(monkeypatch, stale_s=600)
    first = drive()
    assert says(first) == "holds"
    first.send_signal(signal.SIGKILL)
    first.wait()
    refuse_if_held(store)
    with Lease(store, lambda: None):
        assert owner(folder)["pid"] == os.getpid()
    assert not (folder / "owner.json").exists()


def test_a_number_that_another_process_got_is_not_the_driver(store: Store, folder: Path, monkeypatch):
    """A process of this machine with the driver's number, but started later, does not keep the run."""
    brisk(monkeypatch, stale_s=600)
    gone = {"host": platform.node(), "pid": os.getpid(), "started": "another start"}
    (folder / "owner.json").write_text(json.dumps(gone))
    refuse_if_held(store)


def test_takeover_wins_and_the_first_driver_learns_of_it(drive, folder: Path):
    """The first one is told that it lost, and leaves the new owner's file alone when it ends."""
    first = drive()
    assert says(first) == "holds"
    second = drive(takeover=True)
    assert says(second) == "holds"
    assert says(first) == "lost"
    assert let_end(first) == "ended"
    assert owner(folder)["pid"] == second.pid
    assert let_end(second) == "ended"
    assert not (folder / "owner.json").exists()


def test_a_stopped_driver_loses_the_run_and_learns_of_it_when_it_wakes(drive, folder: Path, store, monkeypatch):
    """A process that does not renew for long enough is as good as gone, even on this machine."""
    brisk(monkeypatch, stale_s=0.4)
    first = drive()
    assert says(first) == "holds"
    first.send_signal(signal.SIGSTOP)
    with Lease(store, lambda: None) as second:
        first.send_signal(signal.SIGCONT)
        assert says(first) == "lost"
        assert let_end(first) == "ended"
        assert owner(folder)["pid"] == os.getpid()
        assert not second.lost


def test_a_driver_on_another_machine_that_renews_is_not_disturbed(store: Store, monkeypatch):
    """Its process cannot be looked up here; that it renews is enough."""
    brisk(monkeypatch, stale_s=20)
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    with Lease(store, lambda: None) as first:
        monkeypatch.undo()
        monkeypatch.setattr(room, "RENEW_S", 0.05)
        with pytest.raises(BadInput, match=r"on elsewhere since .* is at work on it"), Lease(store, lambda: None):
            pass
        assert not first.lost


@pytest.mark.parametrize(
    "text",
    ['{"host": "elsewhere", "pid": 1, "started": "x", "since": "long ago"}', "", "garbage", "[]", "{}", "\ufffd"],
)
def test_a_lease_that_nobody_renews_grows_stale(store: Store, folder: Path, monkeypatch, text: str):
    """Left by another machine, or damaged: after STALE_S without a change it is free."""
    brisk(monkeypatch, stale_s=0.3)
    (folder / "owner.json").write_text(text)
    with Lease(store, lambda: None):
        assert owner(folder)["pid"] == os.getpid()


def test_a_free_run_is_taken_without_waiting(store: Store, folder: Path, monkeypatch):
    """Nothing is asked of a folder without an owner, and nothing is left in it."""
    brisk(monkeypatch, stale_s=600)
    for _ in range(2):
        refuse_if_held(store)
        with Lease(store, lambda: None):
            pass
        assert not (folder / "owner.json").exists()


def test_of_many_drivers_at_once_one_gets_the_run(store: Store, monkeypatch):
    """However they race for a stale lease, all but one are refused."""
    brisk(monkeypatch, stale_s=1.0)
    store.write("owner.json", b'{"host": "elsewhere"}')
    start, all_tried, outcomes = threading.Barrier(6), threading.Barrier(6), []

    def one() -> None:
        start.wait()
        try:
            with Lease(store, lambda: None):
                outcomes.append("holds")
                all_tried.wait()
        except BadInput:
            outcomes.append("refused")
            all_tried.wait()

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["holds"] + ["refused"] * 5


@pytest.mark.parametrize("takeover", [False, True], ids=["again", "takeover"])
def test_a_lease_that_always_slips_away_is_given_up(store: Store, folder: Path, monkeypatch, takeover: bool):
    """A store that refuses every write as if others were faster is asked a few times, not for ever."""
    brisk(monkeypatch, stale_s=600)
    (folder / "owner.json").write_text(json.dumps({"host": platform.node(), "pid": 1, "started": "another start"}))
    asked: list[str] = []
    monkeypatch.setattr(type(store), "replace_if_unchanged", lambda self, key, *_: asked.append(key))
    with pytest.raises(BadInput, match="others took it each time"), Lease(store, lambda: None, takeover):
        pass
    assert asked == ["owner.json"] * room.ROUNDS


def test_the_run_is_let_go_when_the_work_fails(store: Store, folder: Path):
    """An error inside leaves no owner behind."""
    with pytest.raises(RuntimeError), Lease(store, lambda: None):
        raise RuntimeError
    assert not (folder / "owner.json").exists()
