"""dialects: what stores that speak S3 differ in, and the lease on each of them: safe, or said not to be."""

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError
from fake_s3 import FakeS3, Ways
from waiting import eventually

from orchestrator.data.indexing import build_index
from orchestrator.errors import BadInput
from orchestrator.runs import lease as room
from orchestrator.runs.lease import Lease, refuse_if_held
from orchestrator.spec.sections import Data
from orchestrator.store import Store, open_store
from orchestrator.store.bucket import Bucket

pytestmark = pytest.mark.timeout(60)

LONGEST_S = 20.0  # to take a lease on a busy machine; it takes a fraction of a second
MOST_REQUESTS = 25  # to take a lease, whatever the store is like
# how it answers, and whether both conditions can be had of it
STORES = {
    "as AWS": (Ways(), True),
    "as Ceph: bare ETags alone": (Ways(if_match="refused"), True),
    "quoted ETags alone": (Ways(if_match_bare="refused"), True),
    "If-Match ignored where quoted": (Ways(if_match="ignored"), False),
    "If-Match refused": (Ways(if_match="refused", if_match_bare="refused"), False),
    "If-Match ignored": (Ways(if_match="ignored", if_match_bare="ignored"), False),
    "If-Match 501": (Ways(if_match=501, if_match_bare=501), False),
    "If-None-Match ignored": (Ways(if_none_match="ignored"), False),
    "both ignored": (Ways("ignored", "ignored", "ignored"), False),
    "both refused": (Ways("refused", "refused", "refused"), False),
    "both 501": (Ways(501, 501, 501), False),
    "both 405": (Ways(405, 405, 405), False),
    "both 400": (Ways(400, 400, 400), False),
    "both unsupported": (Ways("unsupported", "unsupported", "unsupported"), False),
}
KEY = "run/owner.json"
DEAD = {"host": platform.node(), "pid": os.getpid(), "started": "another start", "since": "yesterday"}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Ways], FakeS3]]:
    """Starts a store, to which the environment then leads."""
    servers: list[FakeS3] = []
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "nothing"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "nothing"))

    def start(ways: Ways) -> FakeS3:
        servers.append(FakeS3(ways).__enter__())
        for name, value in servers[-1].env().items():
            monkeypatch.setenv(name, value)
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


def run_folder(fake: FakeS3) -> Store:
    """Opened anew, so that it knows nothing yet of its store."""
    return Bucket("s3://fake/run", fake.endpoint, "us-east-1")  # as open_store does, but for a search for the endpoint


def unlost() -> None:
    raise AssertionError("nobody else may have taken this lease")


class TestLease:
    """The lease on every kind of store: it is taken and kept, a second driver is refused, a dead one followed."""

    @pytest.fixture(params=STORES)
    def kind(self, request: pytest.FixtureRequest) -> tuple[Ways, bool]:
        return STORES[request.param]

    @pytest.fixture
    def exclusive(self, kind: tuple[Ways, bool]) -> bool:
        return kind[1]

    @pytest.fixture
    def fake(
        self, serve: Callable[[Ways], FakeS3], kind: tuple[Ways, bool], monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[FakeS3]:
        """The store; each lease is renewed often, and the time that a test takes is bounded."""
        monkeypatch.setattr(room, "RENEW_S", 0.05)
        monkeypatch.setattr(room, "SETTLE_S", 0.1)
        began = time.monotonic()
        yield serve(kind[0])
        assert time.monotonic() - began < LONGEST_S

    def test_a_free_run(self, fake: FakeS3, exclusive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is taken within few requests, which find out what the store is like, and nothing else is left there."""
        monkeypatch.setattr(room, "RENEW_S", 600)
        with Lease(run_folder(fake), unlost) as lease:
            assert len(fake.asked) <= MOST_REQUESTS
            assert lease.exclusive is exclusive
            assert lease.holds()
            assert list(fake.objects) == [KEY]
        assert fake.objects == {}

    def test_it_is_renewed(self, fake: FakeS3) -> None:
        """Again and again, within a few requests each time."""
        with Lease(run_folder(fake), unlost) as lease:
            fake.asked.clear()
            first = writes(fake)
            eventually(lambda: writes(fake) >= first + 5)
            assert lease.holds()
            assert len(fake.asked) <= 3 * (writes(fake) - first + 1)
        assert fake.objects == {}

    def test_a_second_driver(self, fake: FakeS3) -> None:
        """It is told at once what it waits for, then refused, and the first one goes on."""
        told: list[str] = []
        with Lease(run_folder(fake), unlost) as first:
            with pytest.raises(BadInput, match=f"process {os.getpid()} on .* is at work on it"):
                refuse_if_held(run_folder(fake), told.append)
            with pytest.raises(BadInput, match="is at work on it"), Lease(run_folder(fake), unlost, say=told.append):
                pass
            assert first.holds()
        who = f"process {os.getpid()} on {platform.node()}"
        line = f"s3://fake/run was driven by {who}; waiting up to 20 s to see whether it is still at work"
        assert told == [line] * 2

    @pytest.mark.parametrize("takeover", [False, True], ids=["again", "takeover"])
    def test_a_dead_driver(self, fake: FakeS3, exclusive: bool, takeover: bool) -> None:
        """Who was killed is followed without a wait, by the same command as by --takeover, and the lease then kept."""
        fake.objects[KEY] = json.dumps(DEAD).encode()
        with Lease(run_folder(fake), unlost, takeover, unwaited) as lease:
            assert len(fake.asked) <= MOST_REQUESTS
            assert lease.exclusive is exclusive
            first = writes(fake)
            eventually(lambda: writes(fake) >= first + 2)
            assert lease.holds()

    def test_takeover(self, fake: FakeS3) -> None:
        """With --takeover the second driver gets the run at once, and the first one learns of it."""
        lost = threading.Event()
        first = Lease(run_folder(fake), lost.set)
        with first, Lease(run_folder(fake), unlost, takeover=True, say=unwaited) as second:
            assert lost.wait(LONGEST_S)
            assert not first.holds()
            assert second.holds()
        assert fake.objects == {}

    def test_a_race(self, fake: FakeS3, exclusive: bool) -> None:
        """Of drivers that follow a dead one at once, one is left; where the store may let in more, each says so."""
        fake.objects[KEY] = json.dumps(DEAD).encode()
        start, all_tried, one_left = threading.Barrier(3), threading.Barrier(4), threading.Event()
        holders: list[Lease] = []
        refused: list[str] = []

        def drive() -> None:
            start.wait()
            try:
                with Lease(run_folder(fake), lambda: None) as lease:
                    holders.append(lease)
                    all_tried.wait()
                    one_left.wait()
            except BadInput as why:
                refused.append(str(why))
                all_tried.wait()

        threads = [threading.Thread(target=drive, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        all_tried.wait(LONGEST_S)
        eventually(lambda: len([lease for lease in holders if not lease.lost]) == 1, LONGEST_S)
        one_left.set()
        for thread in threads:
            thread.join()
        assert len(holders) == 1 or not exclusive
        assert {lease.exclusive for lease in holders} == {exclusive}
        assert len(holders) + len(refused) == 3

    def test_results(self, fake: FakeS3) -> None:
        """A worker's result is there after one call, and the same once more does no harm."""
        store = run_folder(fake)
        assert store.write_if_absent("trials/a-1.json", b"{}")
        run_folder(fake).write_if_absent("trials/a-1.json", b"{}")
        assert fake.objects == {"run/trials/a-1.json": b"{}"}
        assert len(fake.asked) <= MOST_REQUESTS


def writes(fake: FakeS3) -> int:
    """How often the lease in the store was written."""
    return json.loads(fake.objects[KEY])["writes"]


def unwaited(line: str) -> None:
    raise AssertionError(f"there is nothing to wait for: {line}")


class TestStore:
    """What else stores differ in."""

    def test_uploads_in_parts_go_without_conditions(self, serve: Callable[[Ways], FakeS3]) -> None:
        """Ceph looks at no condition when an upload in parts is completed: what has one is sent whole."""
        fake = serve(Ways(multipart_conditions=False))
        store = run_folder(fake)
        data = os.urandom(6 * 2**20)  # obstore cuts at 5 MiB
        version = store.write_if_absent("a", data)
        assert version
        assert store.write_if_absent("a", data[::-1]) is None
        assert store.replace_if_unchanged("a", data[::-1], "0" * 32) is None
        assert store.replace_if_unchanged("a", data, version)
        assert {asked.method for asked in fake.asked} == {"PUT", "HEAD"}
        assert not any("uploadId" in asked.query for asked in fake.asked)
        store.write("b", data)
        assert any("uploadId" in asked.query for asked in fake.asked)
        assert (store.read("a"), store.read("b")) == (data, data)

    def test_no_checksums_are_sent(self, serve: Callable[[Ways], FakeS3]) -> None:
        """Older stores refuse the checksums that AWS's own libraries send; no request of a store has one."""
        fake = serve(Ways(checksums=False))
        store = run_folder(fake)
        with pytest.raises(ClientError, match="NotImplemented"):
            boto3.session.Session(region_name="us-east-1").client("s3").put_object(Bucket="fake", Key="a", Body=b"")
        fake.asked.clear()
        version = store.write_if_absent("a", b"1")
        store.replace_if_unchanged("a", b"2", version)
        store.write("tagged", b"3", {"orchestrator": "checkpoint"})
        store.write("big", bytes(6 * 2**20))
        found = {o.key: o for o in store.list()}
        assert list(found) == ["a", "big", "tagged"]
        assert list(store.read_many(found.values())) == [b"2", bytes(6 * 2**20), b"3"]
        assert store.read_range(found["big"], 1, 2) == bytes(2)
        store.delete_many(found)
        assert fake.objects == {}
        assert {asked.method for asked in fake.asked} == {"GET", "PUT", "POST", "DELETE"}

    def test_listings_by_directory(self, serve: Callable[[Ways], FakeS3]) -> None:
        """A store that lists directory by directory, over several pages, gives the same index as one that does not."""
        images = {
            f"{name}/{number:04}.png": b"png" for name in ("cat", "cat food", "cat/more") for number in range(400)
        }
        lists, indexes = [], []
        for by_directory in (False, True):
            serve(Ways(by_directory=by_directory)).objects |= {f"images/{key}": data for key, data in images.items()}
            store = open_store("s3://fake/images")
            lists.append([o.key for o in store.list()])
            indexes.append(build_index(store, Data(uri=store.uri)))
        assert lists[0] == sorted(images)
        assert lists[0] != lists[1]
        assert sorted(lists[1]) == lists[0]
        assert indexes[0].digest == indexes[1].digest
        assert list(indexes[0].paths) == list(indexes[1].paths)
