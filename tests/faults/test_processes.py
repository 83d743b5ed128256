"""Processes that die, stop or are told to: workers, drivers, and two drivers on one run folder."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aftermath import (
    GRID,
    LONGER,
    Driver,
    Undisturbed,
    check,
    check_longer,
    clean,
    driving,
    finished,
    hit,
    read_board,
    seed,
)
from grids import assert_the_winner_is_there
from ray._common.utils import get_system_memory
from ray._private.utils import get_used_memory
from waiting import eventually, pause

RUN = Path("runs/shirts")
Note = Callable[[str, object, str], None]
Tries = Callable[[int], int]


def stamps(folder: Path) -> dict[str, int]:
    """Checkpoints and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")} if folder.exists() else {}


def epochs(driver: Driver) -> set[str]:
    """The epochs that it reported, and of which trial."""
    return {line.split("  val_accuracy")[0] for line in driver.lines if line.startswith("epoch ")}


def part(driver: Driver, name: str) -> int:
    """Process id of a part of its Ray."""
    found = []
    for pid in driver.processes():
        with contextlib.suppress(OSError):  # it has ended since
            found += [pid] if Path(f"/proc/{pid}/comm").read_text().strip() == name else []
    (pid,) = found
    return pid


def test_workers_killed(quiet: Undisturbed, tmp_path: Path, env: dict[str, str], tries: Tries, tried: Note) -> None:
    """Again and again in one grid a worker is killed at a random moment of its training: no point fails."""
    draw, kills, seen = random.Random(seed()), 0, {}
    with driving(tmp_path, *LONGER, env=env) as driver:
        checkpoints = tmp_path / RUN / "checkpoints"

        def gone_further() -> list[int]:
            """Workers since whose start every checkpoint under way was written again: what they did is not lost."""
            workers, now = driver.workers(), stamps(checkpoints)
            for pid in workers:
                seen.setdefault(pid, now)
            ahead = [p for p in workers if sum(now[name] != seen[p].get(name) for name in now) >= 2]
            return ahead or (["ended"] if not driver.running else [])

        while kills < tries(20):
            victims = eventually(gone_further)
            assert victims != ["ended"], f"the grid ended after {kills} kills:\n{driver.out}"
            pause(draw.random() / 2)
            with contextlib.suppress(ProcessLookupError):  # that one does not count
                os.kill(draw.choice(victims), signal.SIGKILL)
                kills += 1
        assert driver.end() == 0, driver.out
    clean(driver)
    tried("worker killed at a random moment of its training", kills, check_longer(tmp_path, env, quiet))


def test_drivers_killed(quiet: Undisturbed, tmp_path: Path, env: dict[str, str], tries: Tries, tried: Note) -> None:
    """Again and again the driver is killed at a random moment; the same command trains only what is missing."""
    draw, killed = random.Random(seed()), []
    for _ in range(tries(5)):
        before = finished(tmp_path / RUN)
        with driving(tmp_path, *GRID, env=env) as driver:
            driver.until("shirts: ")
            if draw.random() < 0.3:
                pause(draw.uniform(0, 3))  # while its workers start
            else:
                driver.until("epoch ", draw.randrange(1, 12))  # of 64 in all: five drivers do not come to their end
            driver.kill()
            killed.append(driver)
        after = finished(tmp_path / RUN)
        assert {name: after[name] for name in before} == before
    with driving(tmp_path, *GRID, env=env) as driver:
        assert driver.end() == 0, driver.out
    for each in (*killed, driver):
        clean(each)
    assert_the_winner_is_there(tmp_path / RUN)
    tried("driver killed at a random moment (laptop)", len(killed), check(str(tmp_path / RUN), quiet))


def test_interrupted_while_it_starts(
    quiet: Undisturbed, tmp_path: Path, env: dict[str, str], tries: Tries, tried: Note
) -> None:
    """Ctrl-C at any moment of a start: it ends with the line that resumes, and neither Ray nor Python is heard."""
    draw, drivers = random.Random(seed()), []
    for _ in range(tries(5)):
        with driving(tmp_path, *GRID, env=env) as driver:
            eventually(driver.processes)  # of Ray
            pause(draw.uniform(0, 4))
            began = time.monotonic()
            driver.send(signal.SIGINT)
            assert driver.end() == 130, driver.out
            assert time.monotonic() - began < 15
        assert driver.lines[-1].startswith("interrupted; to go on from here: python -m orchestrator.grid --set")
        assert ".cc:" not in driver.out
        assert "Traceback" not in driver.out
        drivers.append(driver)
    with driving(tmp_path, *GRID, env=env) as driver:
        assert driver.end() == 0, driver.out
    for each in (*drivers, driver):
        clean(each)
    tried("Ctrl-C at a random moment of a start", len(drivers), check(str(tmp_path / RUN), quiet))


def test_interrupted_in_mid_epoch(quiet: Undisturbed, tmp_path: Path, env: dict[str, str], tried: Note) -> None:
    """Every state in training is written, the board is up to date, it ends within 15 s, and its last line resumes."""
    args = (*GRID, "--set", "train.checkpoint_every_s=3600")  # so that only the signal writes one
    run, trained = tmp_path / RUN, set()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        before = finished(run)
        with driving(tmp_path, *args, env=env) as driver:
            driver.until("epoch ", 4)  # of 32 of the first two trials: they are in training each time
            began, wall = time.monotonic(), time.time_ns()
            if number is signal.SIGHUP:  # a terminal that is closed tells all that were started in it
                for pid in driver.processes():
                    hit(pid, number)
            driver.send(number)
            assert driver.end() == 130, driver.out
            assert time.monotonic() - began < 15
        clean(driver)
        assert driver.lines[-1].startswith("interrupted; to go on from here: python -m orchestrator.grid --set")
        assert (run / "report.html").exists()
        assert not (run / "owner.json").exists()
        saved = [name for name, at in stamps(run / "checkpoints").items() if at > wall]
        assert len(saved) == 2, "both trials in training"
        assert (run / "leaderboard.parquet").stat().st_mtime_ns > wall
        assert set(read_board(str(run)).status) <= {"ok", "pending"}
        assert before.items() <= finished(run).items()
        assert epochs(driver) & trained == set(), "no epoch is trained twice"
        trained |= epochs(driver)
    with driving(tmp_path, *args, env=env) as again:
        assert again.end() == 0, again.out
    clean(again)
    assert epochs(again) & trained == set(), "no epoch is trained twice"
    lost = check(str(run), quiet)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        tried(f"{number.name} in the middle of an epoch", 1, lost)


PARTS = [
    ("gcs_server", "interrupted; to go on from here: python -m orchestrator.grid --set"),
    ("gcs_server", "error: the cluster's head must answer"),
    ("raylet", "error: this node's Ray must answer"),
]


@pytest.mark.long
def test_a_part_of_ray_killed(quiet: Undisturbed, tmp_path: Path, env: dict[str, str], tried: Note) -> None:
    """The driver hears Ctrl-C all the same, or ends by itself: with one line, its tables in order, the run let go."""
    drivers = []
    for name, told in PARTS:
        interrupted = told.startswith("interrupted")
        with driving(tmp_path, *LONGER, env=env) as driver:
            driver.until("epoch ", 8)
            began = time.monotonic()
            os.kill(part(driver, name), signal.SIGKILL)
            if interrupted:
                driver.send(signal.SIGINT)
            assert driver.end() == (130 if interrupted else 2), driver.out
            assert time.monotonic() - began < 60, "before Ray ends the driver"
        assert driver.lines[-1].startswith(told)
        assert set(read_board(str(tmp_path / RUN)).status) <= {"ok", "pending"}
        assert not (tmp_path / RUN / "owner.json").exists()
        drivers.append(driver)
    with driving(tmp_path, *LONGER, env=env) as again:
        assert again.end() == 0, again.out
    for each in (*drivers, again):
        clean(each)
    lost = check_longer(tmp_path, env, quiet)
    for name, told in PARTS:
        tried(f"Ray's own {name} killed{', then Ctrl-C' if told.startswith('interrupted') else ''}", 1, lost)


@pytest.mark.long
def test_what_tells_workers_to_stop_killed(
    quiet: Undisturbed, tmp_path: Path, env: dict[str, str], tried: Note
) -> None:
    """They do not take it for a stop; and the one that comes reaches them all the same."""
    with driving(tmp_path, *GRID, "--set", "train.checkpoint_every_s=3600", env=env) as driver:
        driver.until("epoch ", 4)
        os.kill(part(driver, "ray::StopSignal"), signal.SIGKILL)
        driver.until("epoch ", 10)
        wall = time.time_ns()
        driver.send(signal.SIGINT)
        assert driver.end() == 130, driver.out
    assert [at > wall for at in stamps(tmp_path / RUN / "checkpoints").values()].count(True) == 2
    with driving(tmp_path, *GRID, env=env) as again:
        assert again.end() == 0, again.out
    for each in (driver, again):
        clean(each)
    tried("the actor that tells workers to stop killed", 1, check(str(tmp_path / RUN), quiet))


@pytest.mark.long
def test_a_driver_that_sleeps(quiet: Undisturbed, tmp_path: Path, env: dict[str, str], tried: Note) -> None:
    """While it works, a second driver is refused; asleep for too long, it loses the run and writes nothing more."""
    run = tmp_path / RUN
    with driving(tmp_path, *GRID, env=env) as first:
        first.until("epoch ", 5)
        workers = first.workers()
        for pid in workers:  # or a fast machine is done before it can be asked
            os.kill(pid, signal.SIGSTOP)
        with driving(tmp_path, *GRID, env=env) as refused:
            assert refused.end() == 2
        assert f"process {first.pid} on {os.uname().nodename} since 20" in refused.out
        assert "is at work on it" in refused.out
        assert first.running
        os.kill(first.pid, signal.SIGSTOP)  # now all of it, as a machine that sleeps stops
        with driving(tmp_path, *GRID, env=env) as second:
            second.until("epoch ")
            held = (run / "owner.json").read_text()
            for pid in (*workers, first.pid):
                os.kill(pid, signal.SIGCONT)
            assert first.end() == 2
            assert "another process took" in first.out
            assert f'"pid": {second.pid}' in held
            assert second.end() == 0, second.out
    for driver in (first, refused, second):
        clean(driver)
    lost = check(str(run), quiet)
    tried("second driver while the first one works", 1, "nothing: it is refused")
    tried("driver asleep for longer than its lease, then awake", 1, lost)


@pytest.fixture
def cage() -> Iterator[Path]:
    """A control group of the kernel whose processes may use 300 MB more than they have when they enter."""
    root = Path("/sys/fs/cgroup")
    old = (root / "memory").is_dir()
    folder = root / ("memory" if old else "") / f"faults-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(300 * 2**20))
    except OSError as error:
        pytest.skip(f"making a control group with a memory limit must be permitted to this user: {error}")
    yield folder
    eventually(lambda: not (folder / "cgroup.procs").read_text())
    folder.rmdir()


@pytest.mark.long
def test_out_of_memory(tmp_path: Path, env: dict[str, str], cage: Path, tried: Note) -> None:
    """A trial that takes more memory than there is dies by the kernel's hand three times, then is a failed row."""
    (tmp_path / "greedy.py").write_text(
        "import os\n"
        "from orchestrator.train.model import small_cnn\n"
        "def greedy(input_shape, classes, mb=0):\n"
        "    if mb:\n"
        f"        open('{cage}/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "        bytearray(os.urandom(2**20) * mb)\n"
        "    return small_cnn(input_shape, classes)\n"
    )
    args = ("--set", "model=greedy:greedy", "--set", "grid={mb: [0, 2000], epochs: [2]}", "--set", "data.image_size=16")
    with driving(tmp_path, *args, env=env) as driver:
        assert driver.end() == 1, driver.out
    clean(driver)
    board = read_board(str(tmp_path / RUN))
    assert dict(zip(board.mb, board.status, strict=True)) == {0: "ok", 2000: "failed"}
    assert board.error[1].startswith("its worker died 3 times: ")
    tried("worker out of memory (killed by the kernel)", 3, "that point: failed, after three tries")


@pytest.mark.long
def test_a_node_that_runs_out_of_memory(tmp_path: Path, env: dict[str, str], tried: Note) -> None:
    """Ray ends the worker that takes too much of it: that trial has failed after three tries, and says why."""
    whole, used = get_system_memory(), get_used_memory()
    room = 4 * 2**30
    if whole - used < 2 * room:
        pytest.skip(f"this needs {2 * room / 2**30:.0f} GiB of free memory, here are {(whole - used) / 2**30:.1f}")
    (tmp_path / "greedy.py").write_text(
        "from orchestrator.train.model import small_cnn\n"
        "def greedy(input_shape, classes, mb=0):\n"
        "    held = [bytearray(b'1' * 2**20) for _ in range(mb)]\n"
        "    return small_cnn(input_shape, classes)\n"
    )
    args = ("--set", "model=greedy:greedy", "--set", f"grid={{mb: [0, {room // 2**19}], epochs: [2]}}")
    limit = {"RAY_memory_usage_threshold": f"{(used + room) / whole:.3f}", "RAY_memory_monitor_refresh_ms": "50"}
    with driving(tmp_path, *args, "--set", "data.image_size=16", env=env | limit) as driver:
        assert driver.end() == 1, driver.out
    clean(driver)
    board = read_board(str(tmp_path / RUN)).set_index("mb")
    assert board.status.to_list() == ["ok", "failed"]
    assert board.error.iloc[1] == "its worker died 3 times: its node ran out of memory"
    tried("worker out of memory (ended by Ray)", 3, "that point: failed, after three tries")


def burden(pid: int) -> tuple[int, float]:
    """Open files, and resident memory in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return len(os.listdir(f"/proc/{pid}/fd")), int(status.split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.long
def test_nothing_grows(tmp_path: Path, env: dict[str, str]) -> None:
    """Over many trials, neither the driver nor a worker gathers open files or memory."""
    seeds = ("--set", f"seeds={list(range(26))}", "--set", "grid={batch_size: [64], epochs: [2]}")
    with driving(tmp_path, *seeds, "--set", "data.image_size=16", env=env) as driver:
        driver.until("trial 8/")
        early = {pid: burden(pid) for pid in (driver.pid, *driver.workers())}
        driver.until("trial 24/")
        late = {pid: burden(pid) for pid in early}
        assert driver.end() == 0, driver.out
    assert len(early) == 3
    grown = [(late[pid][0] - early[pid][0], late[pid][1] - early[pid][1]) for pid in early]
    print("over 16 trials: open files and MB, of the driver and two workers:", grown)
    assert max(files for files, _ in grown) <= 3
    assert max(mb for _, mb in grown) < 40, grown
