"""A whole grid on a store that refuses, cuts, stalls, fills up or forgets who asks; and the lease on lesser stores."""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from aftermath import GRID, Undisturbed, check, clean, driving, seed, undisturbed
from images import class_folder, fill
from proxy import CLOSE, EXPIRED, FULL, IGNORED, RESET, SLOW_DOWN, UNKNOWN, Fault, Proxy, Request, sometimes
from seaweedfs import Seaweedfs, running

from orchestrator.errors import BadInput
from orchestrator.runs import lease as room
from orchestrator.runs.lease import Lease, refuse_if_held
from orchestrator.store import bucket as store_room
from orchestrator.store import open_store

Note = Callable[[str, object, str], None]


@pytest.fixture(scope="module")
def pets(seaweedfs: Seaweedfs, s3: Any) -> Iterator[str]:
    """A bucket with images of two classes; the environment leads to it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweedfs.env().items():
            patch.setenv(name, value)
        s3.create_bucket(Bucket="pets")
        fill(open_store("s3://pets/images"), class_folder({"cat": 160, "dog": 160}))
        yield "s3://pets"


@pytest.fixture(scope="module")
def quiet_pets(pets: str, tmp_path_factory: pytest.TempPathFactory, short: Callable[[], Path]) -> Undisturbed:
    """The grid from bucket to bucket when nothing happens to it."""
    with driving(tmp_path_factory.mktemp("pets"), *grid(pets, "quiet"), env={"TMPDIR": str(short())}) as driver:
        assert driver.end() == 0, driver.out
    clean(driver)
    return undisturbed(f"{pets}/runs/quiet")


def grid(pets: str, name: str) -> tuple[str, ...]:
    return (*GRID, "--data", f"{pets}/images", "--output", f"{pets}/runs", "--name", name)


def test_faults_that_pass(
    pets: str, quiet_pets: Undisturbed, proxy: Proxy, tmp_path: Path, env: dict[str, str], tried: Note
) -> None:
    """503s in bursts, resets, half answers and stalls of 10 s, on reads and writes of everything: nobody notices."""
    number = seed()
    stalled = {"trials": 0, "checkpoints": 0, "leaderboard.parquet": 0, "images": 0}
    some = [sometimes(fault, 0.05, number + i) for i, fault in enumerate((SLOW_DOWN, RESET, CLOSE))]

    def rule(request: Request) -> Fault | None:
        for part in stalled:
            if f"/{part}" in request.path and not stalled[part] and request.method in ("GET", "PUT"):
                stalled[part] += 1
                return Fault(delay_s=10)
        if "/trials/" in request.path and request.method == "PUT" and request.count <= 3:
            return SLOW_DOWN
        return next((fault for each in some if (fault := each(request))), None)

    proxy.rule = rule
    args, faulty = (
        grid(pets, "passing"),
        {**env, "AWS_ENDPOINT_URL": proxy.endpoint, "ORCHESTRATOR_CACHE_DIR": env["TMPDIR"]},
    )
    with driving(tmp_path, *args, env=faulty) as driver:
        assert driver.end() == 0, driver.out
    clean(driver)
    assert all(stalled.values()), stalled
    lost = check(f"{pets}/runs/passing", quiet_pets)
    tried("store: 503 in bursts, resets, half answers, stalls of 10 s", f"{proxy.requests.total()} requests", lost)


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "what", "cause"),
    [
        pytest.param(
            EXPIRED,
            "credentials expire during a run",
            "ExpiredToken: staged; the credentials have expired",
            id="expired",
        ),
        pytest.param(FULL, "bucket full", "InsufficientStorage: staged; the store is full", id="full"),
    ],
)
def test_faults_that_last(
    pets: str,
    quiet_pets: Undisturbed,
    proxy: Proxy,
    tmp_path: Path,
    env: dict[str, str],
    tried: Note,
    fault: Fault,
    what: str,
    cause: str,
) -> None:
    """One line says what to do; once that is done, the same command trains what is missing. No key is said anywhere."""
    args, faulty = grid(pets, fault.code), {**env, "AWS_ENDPOINT_URL": proxy.endpoint}
    with driving(tmp_path, *args, env=faulty) as driver:
        driver.until("trial 1/")
        proxy.rule = lambda request: fault if fault is EXPIRED or request.method == "PUT" else None
        assert driver.end() == 2, driver.out
        assert driver.lines[-1].startswith("error: ")
        assert cause in driver.lines[-1]
    clean(driver)
    proxy.rule = lambda request: None
    kept = {o.key: o.version for o in open_store(f"{pets}/runs/{fault.code}").list("trials")}
    assert kept, "the first trial's result"
    with driving(tmp_path, *args, env=faulty) as again:
        assert again.end() == 0, again.out
    clean(again)
    now = {o.key: o.version for o in open_store(f"{pets}/runs/{fault.code}").list("trials")}
    assert kept.items() <= now.items()
    tried(f"store: {what}", 1, check(f"{pets}/runs/{fault.code}", quiet_pets))
    assert_unsaid(pets, fault.code, driver.out + again.out, Path(env["TMPDIR"]), tmp_path)


def assert_unsaid(pets: str, name: str, printed: str, *folders: Path) -> None:
    """Neither key stands in what was printed, in the run folder, in Ray's logs, or in any other file."""
    run = open_store(f"{pets}/runs/{name}")
    texts = {"printed": printed.encode(), **{o.key: run.read(o.key) for o in run.list()}}
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        with contextlib.suppress(OSError):
            texts[str(path)] = path.read_bytes()
    assert len(texts) > 20
    for key in (os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"]):
        assert [where for where, text in texts.items() if key.encode() in text] == []


@pytest.fixture(params=[UNKNOWN, IGNORED], ids=["501", "ignored"])
def lesser(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A bucket on a store that knows no conditional writes, and says so or not."""
    with running(tmp_path_factory.mktemp("lesser"), anyone=True) as server, Proxy(server.endpoint) as proxy:
        for name, value in (server.env() | {"AWS_ENDPOINT_URL": proxy.endpoint}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
        monkeypatch.setattr(store_room, "PATIENT_RETRY", store_room.BRISK_RETRY)
        boto3.session.Session().client("s3").create_bucket(Bucket="lesser")
        proxy.rule = lambda r: request.param if r.conditional else None
        yield "s3://lesser/run"


def test_a_store_without_conditional_writes(lesser: str, monkeypatch: pytest.MonkeyPatch, tried: Note) -> None:
    """It is found out when the lease is taken, which then goes by a look: a second driver is refused all the same."""
    monkeypatch.setattr(room, "RENEW_S", 0.5)  # seldom enough that a look and its write are not torn apart
    monkeypatch.setattr(room, "STALE_S", 5.0)
    lost = threading.Event()
    with Lease(open_store(lesser), lost.set) as first:
        assert not first.exclusive
        with pytest.raises(BadInput, match=r"is at work on it"):
            refuse_if_held(open_store(lesser))
        with pytest.raises(BadInput, match=r"is at work on it"), Lease(open_store(lesser), lambda: None):
            pass
        assert first.holds()
        with Lease(open_store(lesser), lambda: None, takeover=True):
            assert lost.wait(10)
            assert not first.holds()
    assert not open_store(lesser).exists("owner.json")
    tried("two drivers on a store without conditional writes", 1, "nothing: the first is warned, the second refused")


def test_two_drivers_on_a_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch, tried: Note) -> None:
    """Of four drivers that start at once on S3 one gets the run, and the others are told who has it."""
    monkeypatch.setattr(room, "RENEW_S", 0.05)
    monkeypatch.setattr(room, "STALE_S", 3.0)
    start, tried_all, outcomes = threading.Barrier(4), threading.Barrier(4), []

    def drive() -> None:
        start.wait()
        try:
            with Lease(open_store(bucket), lambda: None) as lease:
                outcomes.append(f"holds {lease.exclusive}")
                tried_all.wait()
        except BadInput as refused:
            outcomes.append(re.sub("process .*", "", str(refused)))
            tried_all.wait()

    threads = [threading.Thread(target=drive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes)[0] == "holds True"
    assert len([text for text in outcomes if text.startswith("holds")]) == 1
    tried("four drivers start at once on one run in S3", 1, "nothing: one works, three are refused")
