"""store, faults: what a real server's answers become when a proxy delays, refuses, cuts or swallows them."""

import os
import random
import re
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from proxy import CLOSE, EXPIRED, FULL, RESET, SLOW_DOWN, STALL, Fault, Proxy, Request, Rule, sometimes
from seaweedfs import Seaweedfs

from orchestrator.store import Changed, Missing, Store, StoreError, open_store
from orchestrator.store.bucket import Bucket

RETRIES = 3  # as `faulty_bucket` has it
DATA = random.Random(1).randbytes(200_000)
BREAKS = [pytest.param(RESET, id="reset"), pytest.param(CLOSE, id="close"), pytest.param(STALL, id="stall")]
READS: dict[str, Callable[[Store], bytes]] = {
    "read": lambda store: store.read("a"),
    "read_range": lambda store: store.read_range(next(o for o in store.list() if o.key == "a"), 0, len(DATA) + 1),
    "read_many": lambda store: next(store.read_many(o for o in store.list() if o.key == "a")),
}
CALLS: dict[str, Callable[[Store], object]] = {
    "list": lambda store: list(store.list()),
    "write": lambda store: store.write("a", b""),
    "write_if_absent": lambda store: store.write_if_absent("a", b""),
    "replace_if_unchanged": lambda store: store.replace_if_unchanged("a", b"", "1"),
    "delete": lambda store: store.delete("a"),
    "exists": lambda store: store.exists("a"),
    **READS,
}


@pytest.fixture
def store(faulty_bucket: str) -> Store:
    """Holds DATA as "a"."""
    opened = open_store(faulty_bucket)
    opened.write("a", DATA)
    return opened


@pytest.fixture
def behind(bucket: str, seaweedfs: Seaweedfs) -> Store:
    """The same bucket behind the proxy's back."""
    return Bucket(bucket, seaweedfs.endpoint, "us-east-1")


def first(count: int, fault: Fault) -> Rule:
    """Fault the first requests of each method and path."""
    return lambda request: fault if request.count <= count else None


def stage(proxy: Proxy, rule: Rule) -> None:
    """From now on, counting anew."""
    proxy.requests.clear()
    proxy.rule = rule


def failure(call: Callable[[Store], object], store: Store) -> str:
    """The one line a user sees, after looking for the address in it, and for what must not be."""
    with pytest.raises(StoreError) as caught:
        call(store)
    line, shown = str(caught.value), "".join(traceback.format_exception(caught.value))
    assert "\n" not in line
    assert line.startswith(store.uri)
    for secret in (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], "Signature", "X-Amz-"):
        assert secret.lower() not in shown.lower()
    return line


def filled(store: Store, count: int) -> dict[str, bytes]:
    """Write that many objects of 1 to 40 kB; returns them by key."""
    blobs = {f"many/{i:03}": random.Random(i).randbytes(1000 + 997 * i % 40_000) for i in range(count)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store.write, blobs, blobs.values()))
    return blobs


def change(store: Store, key: str, now: bytes | None) -> None:
    store.delete(key) if now is None else store.write(key, now)


def two_pages(store: Store) -> list[str]:
    keys = [f"many/{i:04}" for i in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.write(key, b"x"), keys))
    return keys


class TestPasses:
    """Faults that pass: the caller gets the right bytes and sees nothing."""

    @pytest.mark.parametrize("fault", [pytest.param(SLOW_DOWN, id="503"), *BREAKS])
    def test_reads(self, store: Store, proxy: Proxy, fault: Fault) -> None:
        """A read refused, reset, cut short or stalled at first ends with the whole object, however it is read."""
        for read in READS.values():
            stage(proxy, lambda r: first(1, fault)(r) if r.path.endswith("/a") else None)
            assert read(store) == DATA
            assert proxy.requests["GET", f"/{store.uri[5:]}/a"] == 2

    def test_what_is_missing(self, store: Store, proxy: Proxy) -> None:
        """The answer that there is no such object may break off too: it is asked for again, and is no failure."""
        for fault in (RESET, CLOSE, STALL):
            stage(proxy, first(1, fault))
            with pytest.raises(Missing):
                store.read("nothing")

    def test_bursts(self, store: Store, proxy: Proxy) -> None:
        """As many faults in a row as there are retries are still waited out."""
        for fault in (SLOW_DOWN, RESET, CLOSE):
            stage(proxy, first(RETRIES, fault))
            assert store.read("a") == DATA
            assert proxy.requests.total() == RETRIES + 1, fault

    def test_writes(self, store: Store, proxy: Proxy) -> None:
        """A write or delete that was refused, or whose answer was lost, is sent again."""
        for fault in (SLOW_DOWN, RESET, CLOSE):
            stage(proxy, first(1, fault))
            version = store.write("b", b"b")
            assert store.read_versioned("b") == (b"b", version)
            store.delete("b")
            assert not store.exists("b")
            assert [proxy.requests[method, f"/{store.uri[5:]}/b"] for method in ("PUT", "DELETE")] == [2, 2], fault

    def test_conditional_writes(self, store: Store, proxy: Proxy) -> None:
        """A new object whose answer was lost is there, though who wrote it is not known."""
        for fault in (RESET, CLOSE, STALL):
            stage(proxy, first(1, fault))
            assert store.write_if_absent(f"new/{fault.cut}", b"b") is None
            assert store.read(f"new/{fault.cut}") == b"b"

    def test_listings(self, store: Store, proxy: Proxy) -> None:
        """A listing that breaks off on its first or its second page has each object once."""
        keys = two_pages(store)
        for fault in (SLOW_DOWN, RESET, CLOSE, STALL):
            for page in (1, 2):
                stage(proxy, lambda r, page=page, fault=fault: fault if r.count == page else None)
                assert [o.key for o in store.list("many")] == keys, (fault, page)
                assert proxy.requests.total() > 2

    def test_read_many(self, store: Store, proxy: Proxy) -> None:
        """Of many objects, some of them faulty, each comes whole and in order, and none is asked for without need."""
        blobs = filled(store, 150)
        objects = list(store.list("many"))
        random.Random(0).shuffle(objects)
        for seed, fault in enumerate((SLOW_DOWN, RESET, CLOSE, STALL, Fault(delay_s=0.1))):
            now_and_then = sometimes(fault, 0.02 if fault is STALL else 0.15, seed)

            def rule(request: Request, now_and_then: Rule = now_and_then) -> Fault | None:
                return now_and_then(request) if request.count <= 3 else None  # as many as are retried

            stage(proxy, rule)
            assert list(store.read_many(objects, in_flight=16)) == [blobs[o.key] for o in objects], fault
            again = sum(
                rule(Request(method, path, nth)) is not None and fault != Fault(delay_s=0.1)
                for (method, path), count in proxy.requests.items()
                for nth in range(1, count + 1)
            )
            assert proxy.requests.total() == 150 + again, fault


class TestLasts:
    """Faults that last: one line with the key, the last cause and what to do, within the limits."""

    @pytest.mark.parametrize(
        ("fault", "cause"),
        [
            pytest.param(SLOW_DOWN, r"(SlowDown: staged|HTTP status 503); the store is overloaded", id="503"),
            pytest.param(FULL, r"(InsufficientStorage: staged|HTTP status 507); the store is full", id="507"),
            pytest.param(RESET, r"(no|the) answer from http.*check the network", id="reset"),
            pytest.param(CLOSE, r"(no|the) answer from http.*check the network", id="close"),
        ],
    )
    def test_gives_up(self, store: Store, proxy: Proxy, behind: Store, fault: Fault, cause: str) -> None:
        """Every operation gives up after its retries, and says on which object and why."""
        for name, call in CALLS.items():
            behind.write("a", DATA)  # a delete whose answer is lost has deleted
            stage(proxy, lambda r, name=name: fault if r.path.endswith("/a") or name == "list" else None)
            line = failure(call, store)
            assert re.search(cause, line), name
            assert line.startswith(f"{store.uri}/a: " if name != "list" else f"{store.uri}: list failed: ")
            # one more than ours, where the HTTP library itself sends again on a connection it found closed
            assert max(proxy.requests.values()) <= RETRIES + 2, name

    @pytest.mark.parametrize("name", ["read", "list"])
    def test_gives_up_on_a_stalled_server(self, store: Store, proxy: Proxy, name: str) -> None:
        """A server that stalls every time is given up on within the limits."""
        stage(proxy, lambda request: STALL)
        began = time.monotonic()
        assert "no answer from" in failure(CALLS[name], store)
        assert time.monotonic() - began < 10

    def test_expired_credentials(self, store: Store, proxy: Proxy) -> None:
        """Expired credentials are told at once, after a single request."""
        for name, call in CALLS.items():
            stage(proxy, lambda request: EXPIRED)
            assert re.search("(ExpiredToken: staged|HTTP status 403); .*renew", failure(call, store)), name
            assert proxy.requests.total() == 1, name

    def test_credentials_that_expire_half_way(self, store: Store, proxy: Proxy) -> None:
        """When credentials expire during a long read, what came is right, and the line names what did not."""
        blobs = filled(store, 100)
        objects = list(store.list("many"))
        stage(proxy, lambda r: EXPIRED if r.path > f"/{store.uri[5:]}/many/050" else None)
        got: list[bytes] = []
        began = time.monotonic()
        line = failure(lambda store: got.extend(store.read_many(objects, in_flight=8)), store)
        assert time.monotonic() - began < 5
        assert got == list(blobs.values())[:51]
        assert line.startswith(f"{store.uri}/many/051: read failed: ExpiredToken")
        assert proxy.requests.total() < 70, "it must not go on asking"

    def test_a_session_token_stays_unsaid(
        self, faulty_bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A session token, too, is in no error text, be it the server's own refusal or one that echoes the request."""
        monkeypatch.setenv("AWS_SESSION_TOKEN", "hunter2hunter2")
        for rule in (lambda request: None, lambda request: EXPIRED):
            stage(proxy, rule)
            assert "hunter2" not in failure(lambda store: store.read("a"), open_store(faulty_bucket))

    @pytest.mark.parametrize("fault", [RESET, CLOSE], ids=["reset", "close"])
    def test_one_bad_object_among_many(self, store: Store, proxy: Proxy, fault: Fault) -> None:
        """Where one object of many stays broken, those before it are right, and the line names it."""
        blobs = filled(store, 30)
        stage(proxy, lambda r: fault if r.path.endswith("/017") else None)
        got: list[bytes] = []
        line = failure(lambda store: got.extend(store.read_many(store.list("many"), in_flight=8)), store)
        assert line.startswith(f"{store.uri}/many/017: read failed: ")
        assert got == list(blobs.values())[:17]


class TestOthersWrite:
    """The store changes while it is read."""

    @pytest.mark.parametrize(("now", "error"), [(b"new", Changed), (None, Missing)], ids=["overwritten", "deleted"])
    def test_between_list_and_read(
        self, store: Store, proxy: Proxy, behind: Store, now: bytes | None, error: type[StoreError]
    ) -> None:
        """An object changed after it was listed stops read_many with its name, others in flight or not."""
        blobs = filled(store, 40)
        objects = list(store.list("many"))

        def rule(request: Request) -> Fault:
            if request.path.endswith("/020"):
                change(behind, "many/020", now)
            return Fault(delay_s=0.05)  # so that the others are in flight

        stage(proxy, rule)
        got: list[bytes] = []
        with pytest.raises(error, match="/many/020: "):
            got.extend(store.read_many(objects, in_flight=8))
        assert got == list(blobs.values())[:20]

    @pytest.mark.parametrize("now", [bytes(len(DATA)), None], ids=["overwritten", "deleted"])
    def test_between_two_halves(self, store: Store, proxy: Proxy, behind: Store, now: bytes | None) -> None:
        """An object changed while its second half is asked for anew is never a mixture: the read fails by name."""

        def rule(request: Request) -> Fault | None:
            if request.path.endswith("/a") and request.count == 2:
                change(behind, "a", now)
            return RESET if request.path.endswith("/a") and request.count == 1 else None

        for name, read in READS.items():
            behind.write("a", DATA)
            stage(proxy, rule)
            line = failure(read, store)
            assert line.startswith(f"{store.uri}/a: read failed: "), name
            assert ("there is no such object" in line) == (now is None), name

    def test_while_a_listing_starts_over(self, store: Store, proxy: Proxy, behind: Store) -> None:
        """A listing that breaks off, and finds others at its start the next time, fails rather than leave any out."""
        two_pages(store)

        def rule(request: Request) -> Fault | None:
            if request.count == 3:
                behind.delete("many/0000")
            return RESET if request.count == 2 else None

        stage(proxy, rule)
        with pytest.raises(StoreError, match="many: list failed: it broke off, and changed"):
            list(store.list("many"))
