"""serving: a run's page on this machine alone, and what it is sent as the run goes on."""

import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from run_folders import write_run

from orchestrator.display.page import gather
from orchestrator.display.serving import Look, serving
from orchestrator.runs.folder import Run
from orchestrator.runs.lease import Lease

GRID = {"batch_size": [16, 64], "dropout": [0.0, 0.5]}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write_run(str(tmp_path / "cats"), GRID)


@pytest.fixture
def address(run: Run) -> Iterator[str]:
    with serving(run) as address:
        yield address


def ask(address: str, path: str = "", **headers: str) -> tuple[int, bytes, str | None]:
    """Status, body and ETag of what is below the address; `path` from the root if it begins with a slash."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    own = path if path.startswith("/") else parts.path + path
    connection.request("GET", own, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.getheader("ETag")


def test_it_serves_what_the_file_holds(address: str, run: Run):
    """The page, which may ask where it came from and nobody else; and its data, which are not sent twice."""
    status, body, _ = ask(address)
    assert (status, body[:15]) == (200, b"<!doctype html>")
    assert b"connect-src 'self'; base-uri 'none'" in body
    status, body, tag = ask(address, "data.json")
    assert status == 200
    assert json.loads(body) | {"written": ""} == json.loads(json.dumps(gather(run))) | {"written": ""}
    assert ask(address, "data.json", If_None_Match=tag) == (304, b"", tag)


def test_nobody_else_reads_it(address: str):
    """Neither without the token, nor through a name that somebody has made to point here, nor from another machine."""
    assert urlsplit(address).hostname == "127.0.0.1"
    for path in ("/", "/data.json", "/wrong/data.json", f"{urlsplit(address).path}../data.json"):
        assert ask(address, path)[0] == 404
    assert ask(address, Host="evil.example")[0] == 403
    assert ask(address, Host="localhost:8000")[0] == 200  # through a tunnel
    listening = Path("/proc/net/tcp").read_text()
    port = f"{urlsplit(address).port:04X}"
    assert re.findall(rf" (\w+):{port} \w+:\w+ 0A ", listening) == ["0100007F"]


def test_what_runs_is_on_it_while_its_driver_lives(run: Run, tmp_path: Path):
    """A running trial has its epochs so far; a driver that is gone leaves none running, whatever it left behind."""
    write_run(str(tmp_path / "cats"), GRID, fail=1)
    (trial,) = {row["trial_id"] for row in gather_rows(run) if row["status"] == "failed"}
    epochs = [{"epoch": i, "val_accuracy": 0.5, "loss": 1.0} for i in (1, 2)]
    run.write_progress(
        {"left_s": 60, "waiting": 0, "preparing": [], "running": {trial: {"epochs": 12, "history": epochs}}}
    )
    assert gather(run)["progress"] is None
    with Lease(run.store, lambda: None):
        found = gather(run)
        assert found["progress"]["left_s"] == 60
        (row,) = (row for row in gather_rows(run) if row["trial_id"] == trial)
        assert (row["status"], row["epochs_trained"], row["error"]) == ("running", 2, None)
        assert found["curves"][trial] == {"epoch": [1, 2], "val_accuracy": [0.5, 0.5], "loss": [1.0, 1.0]}


def gather_rows(run: Run) -> list[dict]:
    columns = gather(run)["board"]["columns"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_looking_is_bounded(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It looks again once that costs less than a hundredth of the time; many requests cost as much as one."""
    now_s, looks = 100.0, []
    monkeypatch.setattr("orchestrator.display.serving.time.monotonic", lambda: now_s)
    monkeypatch.setattr("orchestrator.display.serving.time.thread_time", lambda: 0.5 * len(looks))  # each takes 0.5 s
    monkeypatch.setattr("orchestrator.display.serving.gather", lambda *_: looks.append(now_s) or {"written": now_s})
    look = Look(run)
    for now_s in (100.0, 101.0, 149.0, 151.0, 152.0):  # noqa: B007
        look.text()
    assert looks == [100.0, 151.0]


def test_the_command_serves_until_ctrl_c(run: Run):
    """It prints the address, writes nothing, and ends with status 0."""
    command = [sys.executable, "-m", "orchestrator.report", run.store.uri, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[0]
        assert ask(address, "data.json")[0] == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
    assert not run.store.exists("report.html")


def test_a_folder_without_a_board_is_refused(tmp_path: Path):
    """One line, exit 2, and nothing is served."""
    command = [sys.executable, "-m", "orchestrator.report", str(tmp_path), "--serve"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path} must be a run folder, and holds no leaderboard.parquet")
