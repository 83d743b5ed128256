"""notify: a run that is over is told once, to an address that nothing else gets to know."""

import json
import pickle
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from documented import checked
from run_folders import board_of

from orchestrator.driver.ending import URL
from orchestrator.driver.lay_out import Options, lay_out
from orchestrator.driver.line import orchestrate
from orchestrator.driver.outcome import outcome
from orchestrator.errors import BadInput
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import Plan, make_plan
from orchestrator.runs.result import Result
from orchestrator.spec.code import Code
from orchestrator.spec.networks import Networks
from orchestrator.spec.reading import load_spec, read_spec, to_yaml
from orchestrator.tracking import notify
from orchestrator.tracking.notify import encode, tell

SECRET = "T0KEN-of-a-chat"
SPEC = """
name: shirts
data: {{uri: "sample://shirts", image_size: [28, 28]}}
augment: {{width_shift: 0.1, height_shift: 0.1, horizontal_flip: true}}
grid: {{batch_size: [32, 64], epochs: [1, 2]}}
notify: {notify}
"""


class Server(HTTPServer):
    """On a free port of this machine; it answers with `status` and keeps what it was sent."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.heard: list[tuple[str, dict[str, str], str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.heard.append((self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        self.send_header("Location", f"{self.server.url}/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def folder(shirts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run, so that the same command trains nothing; where it is called from."""
    shutil.copytree(shirts, tmp_path / "runs" / "shirts")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(folder: Path, notify: str) -> int:
    (folder / "spec.yaml").write_text(SPEC.format(notify=notify))
    return orchestrate(read_spec(str(folder / "spec.yaml"), []), Options(folder=str(folder)))


def test_a_run_is_told_once_and_the_address_is_nowhere(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is resumed; another end is told again. What nobody asked for is not told."""
    address = f"http://me:{SECRET}@127.0.0.1:{server.server_port}/{SECRET}?key={SECRET}"
    assert run(folder, f"{{url: '{address}', on: [failed, budget]}}") == 0
    assert server.heard == []
    assert [run(folder, f"{{url: '{address}'}}") for _ in range(2)] == [0, 0]
    monkeypatch.setenv(URL, address)
    assert run(folder, "{}") == 0
    ((path, headers, body),) = server.heard
    assert path == f"/{SECRET}?key={SECRET}"
    assert headers["Authorization"].startswith("Basic ")
    found = checked(body)
    assert (found["kind"], found["outcome"], found["points"]["ok"]) == ("notice", "done", 4)
    assert found["text"].splitlines()[:3] == [
        *("shirts: done, 4 of 4 points ok", "cost: its nodes have no price", str(folder / "runs" / "shirts"))
    ]
    assert found["text"].splitlines()[3].startswith("best: ")

    (folder / "runs/shirts/history.parquet").unlink()
    (folder / "runs/shirts/history.parquet/in_the_way").mkdir(parents=True)
    with pytest.raises(BadInput, match="Is a directory"):
        run(folder, f"{address}")
    assert checked(server.heard[1][2])["outcome"] == "failed"
    assert "Is a directory" in checked(server.heard[1][2])["error"]
    (folder / "runs/shirts/history.parquet/in_the_way").rmdir()
    (folder / "runs/shirts/history.parquet").rmdir()

    printed = capsys.readouterr()
    (folder / "spec.yaml").unlink()
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert SECRET not in printed.out + printed.err
    assert SECRET.encode() not in kept
    told = [json.loads(line) for line in (folder / "runs/shirts/events.jsonl").read_text().splitlines()]
    assert [each["host"] for each in told if each["event"] == "run.told"] == ["127.0.0.1"] * 2


def test_who_does_not_hear_it_changes_nothing(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, sent elsewhere, dead or silent: one line, and the same status. The next command tries again."""
    monkeypatch.setattr(notify, "_TIMEOUT_S", 0.2)
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        closed.bind(("127.0.0.1", 0))
        dead, mute = (f"http://127.0.0.1:{each.getsockname()[1]}" for each in (closed, silent))
        for url, status, why in (
            (server.url, 403, "answered 403"),
            (server.url, 302, "answered 302"),
            (dead, 200, "cannot be reached (Connection refused)"),
            (mute, 200, "cannot be reached (TimeoutError)"),
            ("http://127.0.0.1:port", 200, "cannot be reached (InvalidURL)"),
        ):
            server.status = status
            assert run(folder, f"{url}/{SECRET}") == 0
            lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("notify: ")]
            assert lines == [f"notify: 127.0.0.1 {why}; nobody was told, and the run is as it would be without"]
    server.status, before = 204, len(server.heard)
    assert run(folder, f"{server.url}/{SECRET}") == 0
    assert len(server.heard) == before + 1


@pytest.fixture
def plan() -> Plan:
    spec = load_spec("{name: a, data: {uri: x}, grid: {batch_size: [5, 10], epochs: [2]}}")
    return make_plan(spec, Counts(100, 20), "i", Networks({"small_cnn": Code("c", {})}))


LINES = ["pets: done, 2 of 2 points ok", "<!channel> a & b"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://hooks.slack.com/services/T/B/x", {"text": f"{LINES[0]}\n&lt;!channel&gt; a &amp; b"}),
        ("https://discord.com/api/webhooks/1/x", {"content": "\n".join(LINES), "allowed_mentions": {"parse": []}}),
        ("https://ntfy.sh/topic", "\n".join(LINES)),
        ("https://ntfy.example.org/topic", "\n".join(LINES)),
    ],
)
def test_each_chat_gets_what_it_takes(address: str, expected: object) -> None:
    """And no name in a line calls somebody."""
    kind, body = encode(urlsplit(address), LINES, {})
    assert (body.decode() if kind.startswith("text") else json.loads(body)) == expected


@pytest.mark.parametrize("name", ["a.webhook.office.com", "prod-1.westus.logic.azure.com", "a.api.powerplatform.com"])
def test_teams_gets_a_card(name: str) -> None:
    _, body = encode(urlsplit(f"https://{name}/workflows/x"), LINES, {})
    (attached,) = json.loads(body)["attachments"]
    assert attached["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert [block["text"] for block in attached["content"]["body"]] == LINES


def test_long_texts_are_cut_where_they_would_be_refused() -> None:
    lines = ["é" * 3000]
    _, body = encode(urlsplit("https://discord.com/api/webhooks/1/x"), lines, {})
    assert len(json.loads(body)["content"]) == 2000
    _, body = encode(urlsplit("https://ntfy.sh/x"), lines, {})
    assert body.decode() == "é" * 2000
    assert tell("http://[::1", lines, {}) == " cannot be reached (ValueError)"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"ftp://h/{SECRET}", "notify.url must be an address such as https://ntfy.sh/TOPIC, got another, which is not"),
        (f"[https://h/{SECRET}]", "notify must be a mapping, got another, which is not shown"),
        (f"{{url: [{SECRET}]}}", "notify.url must be a text, got another, which is not shown"),
        (f"{{uri: {SECRET}}}", "notify.uri is not a known key (did you mean url?); known: url, on"),
        ("{on: [finished]}", "notify.on[0] must be one of 'done', 'failed' or 'budget', got 'finished'"),
    ],
)
def test_a_wrong_address_is_not_shown(text: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput) as error:
        load_spec(SPEC.format(notify=text))
    assert str(error.value).startswith(says)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("override", [f"notify.url=https://h/{SECRET}", f"notify={SECRET}", f"notify.url:x={SECRET}"])
def test_a_command_line_takes_no_address(override: str) -> None:
    """Others see it there, and messages say how to go on from here."""
    with pytest.raises(BadInput, match="others see what stands on a command line") as error:
        load_spec(SPEC.format(notify="{}"), [override])
    assert SECRET not in str(error.value)
    assert load_spec(SPEC.format(notify="{}"), ["notify.on=[failed]"]).notify.on == ["failed"]


def test_no_worker_gets_the_address(folder: Path) -> None:
    spec = load_spec(SPEC.format(notify=f"https://h/{SECRET}"))
    assert spec.notify.url
    context, _ = lay_out(spec, Options(folder=str(folder)))
    assert SECRET.encode() not in pickle.dumps(context)
    assert SECRET not in to_yaml(spec) + repr(spec)


def test_an_environment_without_an_address_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL, SECRET)
    with pytest.raises(BadInput, match=f"{URL} must be an address such as .*, got another, which is not shown"):
        run(folder, "{}")


@pytest.mark.parametrize(
    ("statuses", "budget_used_up", "interrupted", "expected"),
    [
        (("ok", "ok"), False, False, "done"),
        (("ok", "ok"), True, False, "done"),
        (("ok", "failed"), False, False, "failed"),
        (("failed", None), True, False, "failed"),
        (("ok", None), True, False, "budget"),
        (("ok", None), False, False, "failed"),
        (("ok", None), True, True, "interrupted"),
    ],
)
def test_how_a_run_ended(
    statuses: tuple[str | None, ...], budget_used_up: bool, interrupted: bool, expected: str, plan: Plan
) -> None:
    """A budget excuses what is not trained, and nothing that failed."""
    trials = zip(plan.trials, statuses, strict=True)
    results = {t.id: Result(trial_id=t.id, status=how, epochs=2) for t, how in trials if how}
    assert outcome(board_of(plan, results), budget_used_up, interrupted) == expected
