"""What the fault tests share: a grid that nobody disturbs, a bucket behind a proxy, and the table of what was tried."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from aftermath import GRID, POINTS, TRIALS, Undisturbed, clean, driving, undisturbed
from proxy import Proxy
from seaweedfs import Seaweedfs

from orchestrator.store import bucket as store

TABLE = Path(__file__).parents[2] / "docs" / "reliability.md"
_ROWS = pytest.StashKey[dict[str, tuple[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-table", action="store_true", help="write what was tried into docs/reliability.md")


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """Makes temporary folders with short paths: Ray keeps sockets there, whose paths may have 107 characters."""
    with contextlib.ExitStack() as made:
        yield lambda: Path(made.enter_context(tempfile.TemporaryDirectory(prefix="f", ignore_cleanup_errors=True)))


@pytest.fixture
def env(short: Callable[[], Path]) -> dict[str, str]:
    """What a driver's environment has beside the usual: a temporary folder of its own."""
    return {"TMPDIR": str(short())}


@pytest.fixture(scope="session")
def quiet(tmp_path_factory: pytest.TempPathFactory, short: Callable[[], Path]) -> Undisturbed:
    """The grid when nothing happens to it."""
    cwd = tmp_path_factory.mktemp("quiet")
    with driving(cwd, *GRID, env={"TMPDIR": str(short())}) as driver:
        assert driver.end() == 0, driver.out
    clean(driver)
    found = undisturbed(str(cwd / "runs" / "shirts"))
    assert (len(found.points), len(found.results)) == (POINTS, TRIALS)
    return found


@pytest.fixture
def tries(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """How often to cause a fault at random moments: as said where the table is written, else a quarter as often."""
    return lambda many: many if request.config.getoption("--write-table", False) else max(2, many // 4)


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[[str, object, str], None]:
    """Note for the table: the fault, how often it was tried, what was lost."""
    rows = request.config.stash.setdefault(_ROWS, {})

    def note(fault: str, times: object, lost: str) -> None:
        rows[fault] = (str(times), lost)

    return note


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """`make faults` writes the table: as a whole, or, of the tests that were chosen, the rows."""
    rows = session.config.stash.get(_ROWS, {})
    if not rows or not session.config.getoption("--write-table", False):
        return
    text = TABLE.read_text()
    begin, end = "<!-- `make faults` writes this table -->\n", "<!-- its end -->"
    before, _, rest = text.partition(begin)
    old, _, after = rest.partition(end)
    chosen = session.config.option.keyword or session.config.option.markexpr
    if exitstatus or session.config.args != ["tests/faults"] or chosen:
        cells = (line.strip("| ").split(" | ") for line in old.splitlines()[2:])
        rows = {fault: (times, lost) for fault, times, lost in cells} | rows
    lines = [f"| {fault} | {times} | {lost} |" for fault, (times, lost) in sorted(rows.items())]
    table = "\n".join(["| fault | tried | lost |", "|---|---|---|", *lines])
    TABLE.write_text(f"{before}{begin}{table}\n{end}{after}")


@pytest.fixture
def proxy(seaweedfs: Seaweedfs) -> Iterator[Proxy]:
    """In front of the real server; passes everything on until a test sets its rule."""
    with Proxy(seaweedfs.endpoint) as running:
        yield running


@pytest.fixture
def faulty_bucket(bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a fresh bucket seen through the proxy, with three retries within ten seconds."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setattr(store, "PATIENT", {"timeout": "10s", "read_timeout": "1s", "connect_timeout": "1s"})
    waits = {"init_backoff": timedelta(seconds=0.02), "max_backoff": timedelta(seconds=0.1), "base": 2}
    limits = {"max_retries": 3, "retry_timeout": timedelta(seconds=10), "backoff": waits}
    monkeypatch.setattr(store, "PATIENT_RETRY", limits)
    return bucket
