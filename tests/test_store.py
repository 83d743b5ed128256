"""store: one contract on a folder and on a real bucket, the errors a user meets, and faults staged on loopback."""

import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import UnauthorizedSSOTokenError
from obstore.auth.boto3 import Boto3CredentialProvider
from seaweedfs import PUBLIC

from orchestrator.errors import BadInput
from orchestrator.store import Changed, Missing, Object, Store, StoreError, one_line, open_store
from orchestrator.store.aws import aws_endpoint_and_region, list_plainly
from orchestrator.store.hints import explain
from orchestrator.store.interface import unaddressable

ODD_KEYS = [
    "a b/c d.jpg",
    "a+b.jpg",
    "100%.jpg",
    "a%20b.jpg",
    "a%2Fb.jpg",
    "a#b.jpg",
    "a?b=c&d.jpg",
    "größe/日本/😀.jpg",
    "~[x]{y}'\"<>|*:;,@$!^`().jpg",
    "/".join(["x" * 200] * 4 + ["y" * 96]),
]
REFUSED_KEYS = ["", "/a", "a/", "a//b", "../a", "a/../b", "a/..", ".", "./a", ".hidden", "a/.b"]
REFUSED_KEYS += ["a\\b", "a\nb", "a\x00b", "\ud800"]


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"), create=True)
    return open_store(request.getfixturevalue("bucket") + "/some data/50%")


def listed(store: Store, prefix: str = "") -> dict[str, Object]:
    return {found.key: found for found in store.list(prefix)}


def at_once(count: int, call: Callable[[int], str | None]) -> list[str | None]:
    """Call from `count` threads that start together."""
    barrier = threading.Barrier(count)

    def one(i: int) -> str | None:
        barrier.wait()
        return call(i)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


class TestContract:
    """What holds for every store."""

    def test_reads_what_was_written(self, store: Store) -> None:
        """An object's bytes and version come back as written."""
        version = store.write("a/b.bin", b"hello")
        assert store.read("a/b.bin") == b"hello"
        assert store.read_versioned("a/b.bin") == (b"hello", version)
        assert listed(store) == {"a/b.bin": Object("a/b.bin", 5, version)}

    def test_write_replaces_and_changes_the_version(self, store: Store) -> None:
        """Writing again replaces the object and its version, even within one tick of the clock."""
        versions = [store.write("a", bytes([i])) for i in range(20)]
        assert store.read("a") == bytes([19])
        assert len(set(versions)) == 20

    def test_lines_are_added(self, store: Store) -> None:
        """To none, to whole ones, and after one that was cut short."""
        store.append_lines("a/b.jsonl", b"1\n2\n")
        store.append_lines("a/b.jsonl", b"3\n")
        assert store.read("a/b.jsonl") == b"1\n2\n3\n"
        store.write("a/b.jsonl", b"1\n{")
        store.append_lines("a/b.jsonl", b"4\n")
        assert store.read("a/b.jsonl") == b"1\n{\n4\n"

    def test_deletes_many_at_once(self, store: Store) -> None:
        """More than are in flight; those that are not there are no trouble, and others stay."""
        for i in range(50):
            store.write(f"a/{i}", b"x")
        store.write("b", b"x")
        store.delete_many([*(f"a/{i}" for i in range(50)), "a/none"])
        assert set(listed(store)) == {"b"}

    def test_odd_keys_stay_themselves(self, store: Store) -> None:
        """Spaces, signs, escapes, Unicode and 900 characters name exactly one object each."""
        for key in ODD_KEYS:
            store.write(key, key.encode())
        assert sorted(listed(store)) == sorted(ODD_KEYS)
        assert {key: store.read(key).decode() for key in ODD_KEYS} == {key: key for key in ODD_KEYS}
        assert list(store.read_many(store.list())) == [found.key.encode() for found in store.list()]

    def test_refuses_keys_that_would_name_something_else(self, store: Store, tmp_path: Path) -> None:
        """A key that some store cannot hold under this very name is refused by name, in every method."""
        (tmp_path / "a").write_bytes(b"outside")
        calls: list[Callable[[str], object]] = [
            store.read,
            lambda key: store.read_range(Object(key, 7, "1"), 0, 1),
            lambda key: list(store.read_many([Object(key, 7, "1")])),
            lambda key: store.write(key, b""),
            lambda key: store.write_if_absent(key, b""),
            lambda key: store.replace_if_unchanged(key, b"", "1"),
            store.delete,
            store.exists,
        ]
        for key in REFUSED_KEYS:
            for call in calls:
                with pytest.raises(StoreError, match=r"the key .* must"):
                    call(key)
        assert (tmp_path / "a").read_bytes() == b"outside"

    def test_lists_below_a_prefix_in_order(self, store: Store) -> None:
        """Listing takes whole parts as prefix and is ascending in UTF-8 byte order."""
        keys = ["a-b", "a/b", "a/c/d", "ab", "a0", "Z", "é", "😀", "\uffee"]
        for key in keys:
            store.write(key, b"x")
        in_order = ["Z", "a-b", "a/b", "a/c/d", "a0", "ab", "é", "\uffee", "😀"]
        found = list(listed(store))
        # SeaweedFS lists directory by directory; all else agrees to the letter
        assert (found if store.uri.startswith("/") else sorted(found, key=str.encode)) == in_order
        assert list(listed(store, "a")) == list(listed(store, "a/")) == ["a/b", "a/c/d"]
        assert list(listed(store, "a/c")) == ["a/c/d"]
        assert list(listed(store, "nothing")) == []

    def test_lists_more_than_a_page(self, store: Store) -> None:
        """A listing goes on after its first thousand keys."""
        keys = [f"many/{i:04}" for i in range(1100)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.write(key, b"x"), keys))
        assert list(listed(store)) == keys

    def test_reads_ranges(self, store: Store) -> None:
        """A range stops at the object's end."""
        store.write("a", b"0123456789")
        (found,) = store.list()
        ranges = [(0, 4), (4, 4), (8, 4), (10, 4), (12, 4), (3, 0)]
        expected = [b"0123", b"4567", b"89", b"", b"", b""]
        assert [store.read_range(found, *r) for r in ranges] == expected
        assert list(store.read_ranges([(found, *r) for r in ranges], in_flight=2)) == expected

    def test_a_range_of_another_version(self, store: Store) -> None:
        """A range of an object that is no longer the one listed is Changed."""
        store.write("a", b"0123456789")
        (found,) = store.list()
        store.write("a", b"9876543210")
        with pytest.raises(Changed, match="a: must be as listed"):
            store.read_range(found, 0, 4)

    def test_missing_objects(self, store: Store) -> None:
        """Reading a missing key is Missing, looking it up or deleting it is fine."""
        store.write("folder/a", b"")
        for key in ("nothing", "folder", "folder/a/b"):
            for read in (store.read, lambda key: store.read_range(Object(key, 7, "1"), 0, 1)):
                with pytest.raises(Missing, match=f"{key}: read failed"):
                    read(key)
            assert not store.exists(key)
            store.delete(key)
        assert store.exists("folder/a")
        store.delete("folder/a")
        assert not store.exists("folder/a")

    def test_write_if_absent_writes_once(self, store: Store) -> None:
        """Of eight writers at once exactly one creates the object, and the others leave it alone."""
        versions = at_once(8, lambda i: store.write_if_absent("lease", b"%d" % i))
        (winner,) = [i for i, version in enumerate(versions) if version]
        assert store.read_versioned("lease") == (b"%d" % winner, versions[winner])
        assert store.write_if_absent("lease", b"late") is None

    def test_replace_if_unchanged_replaces_once(self, store: Store) -> None:
        """Of eight writers that saw one version exactly one replaces it."""
        seen = store.write("lease", b"old")
        versions = at_once(8, lambda i: store.replace_if_unchanged("lease", b"%d" % i, seen))
        (winner,) = [i for i, version in enumerate(versions) if version]
        assert store.read_versioned("lease") == (b"%d" % winner, versions[winner])

    def test_replace_if_unchanged_needs_the_object(self, store: Store) -> None:
        """Replacing an object that is gone writes nothing."""
        seen = store.write("lease", b"old")
        store.delete("lease")
        assert store.replace_if_unchanged("lease", b"new", seen) is None
        assert not store.exists("lease")

    def test_read_many_keeps_the_order(self, store: Store) -> None:
        """Results come in the order asked for, whichever arrives first."""
        for i in range(30):
            store.write(f"k{i}", b"%d" % i * (1 + 5000 * (i % 3)))
        objects = listed(store)
        wanted = [objects[f"k{i % 30}"] for i in range(100, 0, -1)]
        expected = [b"%d" % (i % 30) * (1 + 5000 * (i % 30 % 3)) for i in range(100, 0, -1)]
        assert list(store.read_many(wanted, in_flight=7)) == expected

    def test_read_many_tells_what_changed(self, store: Store) -> None:
        """An object rewritten since it was listed is Changed, one deleted is Missing; both name the key."""
        store.write("a", b"one")
        store.write("b", b"two")
        objects = list(store.list())
        now = store.write("b", b"six")
        reads = store.read_many(objects)
        assert next(reads) == b"one"
        with pytest.raises(Changed, match=f"/b: .*{objects[1].version}.*{now}"):
            next(reads)
        store.delete("b")
        with pytest.raises(Missing, match="/b: read failed"):
            list(store.read_many(objects))

    def test_pickles_without_credentials(self, store: Store) -> None:
        """A copy in another process opens the same store, with credentials of its own."""
        store.write("a", b"x")
        pickled = pickle.dumps(store)
        assert os.environ.get("AWS_SECRET_ACCESS_KEY", "(none)").encode() not in pickled
        copy = pickle.loads(pickled)
        assert copy.uri == store.uri
        assert copy.read("a") == b"x"

    def test_check_passes(self, store: Store) -> None:
        """A store that works passes its check."""
        store.write("a", b"x")
        store.check()


class TestReadMany:
    """How much read_many holds."""

    @pytest.mark.parametrize(("size", "held"), [(1, 5), (20 * 2**20, 3), (100 * 2**20, 1)])
    def test_holds_no_more_than_asked(self, tmp_path: Path, size: int, held: int) -> None:
        """It never takes in more than in_flight objects and 64 MiB beyond what was handed out."""
        store, taken = open_store(str(tmp_path)), 0
        store.write("a", b"x")
        (real,) = store.list()

        def objects() -> Iterator[Object]:
            nonlocal taken
            for _ in range(20):
                taken += 1
                yield Object("a", size, real.version)

        store._read_expected = lambda expected: b"x"  # type: ignore[method-assign]
        for handed_out, _ in enumerate(store.read_many(objects(), in_flight=5), start=1):
            assert taken - handed_out <= held

    def test_stops_when_left(self, tmp_path: Path) -> None:
        """Leaving the loop early ends its threads."""
        store = open_store(str(tmp_path))
        store.write("a", b"x")
        reads = store.read_many(list(store.list()) * 50)
        next(reads)
        reads.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("store-read")]


class TestFolder:
    """What only folders have."""

    def test_opening_writes_nothing(self, tmp_path: Path) -> None:
        """A missing folder is made by the first write, not by opening, listing or checking."""
        store = open_store(str(tmp_path / "new"), create=True)
        assert list(store.list()) == []
        assert not store.exists("a")
        store.check()
        assert not (tmp_path / "new").exists()
        store.write("a", b"x")
        assert (tmp_path / "new" / "a").read_bytes() == b"x"

    @pytest.mark.parametrize("form", ["relative", "~/data", "file"])
    def test_forms_of_one_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
        """Relative paths, ~ and file:// all lead to the absolute path."""
        data = tmp_path / "data"
        data.mkdir()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        uri = {"relative": "data", "~/data": "~/data", "file": data.as_uri()}[form]
        assert open_store(uri).uri == str(data)

    def test_hidden_files_are_not_listed(self, tmp_path: Path) -> None:
        """Temporary files, the lock and what others hide stay out of the list, and writing leaves no temporary file."""
        store = open_store(str(tmp_path))
        (tmp_path / ".hidden").mkdir()
        (tmp_path / ".hidden" / "a").write_bytes(b"")
        (tmp_path / ".DS_Store").write_bytes(b"")
        store.write("a", b"")
        store.write_if_absent("a", b"")
        assert list(listed(store)) == ["a"]
        assert {path.name for path in tmp_path.iterdir()} == {".hidden", ".DS_Store", ".lock", "a"}

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        """Writing below a file, or over a folder, fails by name and leaves no temporary file."""
        store = open_store(str(tmp_path))
        store.write("a/b", b"x")
        for key in ("a", "a/b/c"):
            with pytest.raises(StoreError, match="write failed") as caught:
                store.write(key, b"y")
            assert not isinstance(caught.value, Missing)
        assert sorted(p.name for p in tmp_path.rglob("*")) == [".lock", "a", "b"]

    def test_follows_links_but_not_in_circles(self, tmp_path: Path) -> None:
        """Linked folders are listed; a link to a folder above it is not followed."""
        (tmp_path / "data" / "cats").mkdir(parents=True)
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "1.jpg").write_bytes(b"")
        (tmp_path / "data" / "dogs").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "data" / "cats" / "up").symlink_to(tmp_path / "data")
        (tmp_path / "data" / "broken").symlink_to(tmp_path / "nothing")
        assert list(listed(open_store(str(tmp_path / "data")))) == ["dogs/1.jpg"]

    def test_sample_is_read_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A sample is read like any folder, refuses writes, and an unknown name lists those there are."""
        (tmp_path / "shirts").mkdir()
        (tmp_path / "shirts" / "a").write_bytes(b"x")
        monkeypatch.setattr("orchestrator.store.folder.SAMPLES", tmp_path)
        store = pickle.loads(pickle.dumps(open_store("sample://shirts")))
        assert (store.uri, store.read("a")) == ("sample://shirts", b"x")
        for write in (lambda: store.write("b", b""), lambda: store.delete("a")):
            with pytest.raises(StoreError, match="samples are read-only"):
                write()
        with pytest.raises(BadInput, match="one of: shirts; got 'hats'"):
            open_store("sample://hats")


class TestBucket:
    """What only object stores have."""

    def test_directory_markers_are_not_listed(self, bucket: str) -> None:
        """The empty "dir/" objects that consoles make stay out; real empty objects do not."""
        client = boto3.session.Session().client("s3")
        for key in ("cats/", "cats/1.jpg", "none/", "empty"):
            client.put_object(Bucket=bucket[5:], Key=key, Body=b"")
        assert sorted(listed(open_store(bucket))) == ["cats/1.jpg", "empty"]
        assert list(listed(open_store(bucket), "cats")) == ["cats/1.jpg"]
        assert list(listed(open_store(f"{bucket}/cats"))) == ["1.jpg"]

    def test_unaddressable_objects_are_named(self, bucket: str) -> None:
        """An object that cannot be read back under its name stops the listing with its name."""
        boto3.session.Session().client("s3").put_object(Bucket=bucket[5:], Key="a\tb", Body=b"x")
        with pytest.raises(StoreError, match=r"a\\tb|a\tb"):
            list(open_store(bucket).list())

    def test_large_objects(self, bucket: str) -> None:
        """An object sent in several parts comes back whole, and its version holds for reading and replacing."""
        store, data = open_store(bucket), os.urandom(12 * 2**20)
        version = store.write("big", data)
        assert list(store.read_many(store.list())) == [data]
        assert store.replace_if_unchanged("big", b"small", version)

    @pytest.mark.parametrize("form", ["AWS_ENDPOINT_URL_S3", "profile"])
    def test_finds_the_endpoint(self, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str) -> None:
        """The endpoint may stand in the service's own variable or in a profile, with the keys."""
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        keys = [f"{n} = {os.environ[n.upper()]}\n" for n in ("aws_access_key_id", "aws_secret_access_key")]
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        if form == "profile":
            config = f"[profile mine]\nendpoint_url = {endpoint}\nregion = eu-west-1\n"
            (tmp_path / "config").write_text(config + "".join(keys))
            monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
            monkeypatch.setenv("AWS_PROFILE", "mine")
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
                monkeypatch.delenv(name)
        else:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port()}")
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        store = open_store(bucket)
        store.write("a", b"x")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{closed_port()}")
        assert pickle.loads(pickle.dumps(store)).read("a") == b"x", "a worker uses the endpoint that the driver found"


def closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class TestBadInput:
    """What a user gets wrong is one clear line."""

    @pytest.mark.parametrize(
        ("uri", "line"),
        [
            ("", "got nothing"),
            ("ftp://user:hunter2@host/x", "must be s3://.* begins with 'ftp:/'"),
            ("s3:/bucket/x", "must be s3://.* begins with 's3:/'"),
            ("s3://", "no valid bucket name"),
            ("s3://key:hunter2@bucket/x", "no valid bucket name"),
            ("s3://bucket/a//b", "the prefix must not .*//"),
            ("file://relative/x", "begins with 'file:/'"),
        ],
    )
    def test_addresses(self, uri: str, line: str) -> None:
        """An address of no known form is refused with the known ones, and without what might be a password."""
        with pytest.raises(BadInput, match=line) as caught:
            open_store(uri)
        assert "hunter2" not in str(caught.value)

    def test_missing_folder(self, tmp_path: Path) -> None:
        """A folder must be there, and be a folder."""
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(BadInput, match="nothing must be a folder; there is none"):
            open_store(str(tmp_path / "nothing"))
        for create in (False, True):
            with pytest.raises(BadInput, match="file must be a folder; it is a file"):
                open_store(str(tmp_path / "file"), create=create)

    def test_missing_bucket(self, bucket: str) -> None:
        """A bucket that is not there is no missing object, whatever the operation."""
        store = open_store("s3://no-such-bucket")
        for call in (store.check, lambda: list(store.list()), lambda: store.read("a"), lambda: store.write("a", b"")):
            with pytest.raises(BadInput, match=r"//no-such-bucket.*NoSuchBucket.*correct the bucket's name") as caught:
                call()
            assert not isinstance(caught.value, Missing)

    @pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
    def test_wrong_credentials(self, bucket: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """A wrong key or secret is said in one line that holds neither."""
        monkeypatch.setenv(name, "hunter2hunter2")
        with pytest.raises(BadInput, match="check AWS_ACCESS_KEY_ID") as caught:
            open_store(bucket).check()
        for secret in (os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"]):
            assert secret not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.__suppress_context__

    def test_no_credentials(self, bucket: str, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without credentials requests go out unsigned: what is public is read, and the rest names the variables."""
        s3.create_bucket(Bucket=PUBLIC)
        try:
            s3.put_object(Bucket=PUBLIC, Key="images/a", Body=b"x")
            monkeypatch.delenv("AWS_ACCESS_KEY_ID")
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
            public, private = open_store(f"s3://{PUBLIC}/images"), open_store(bucket)
            public.check()
            copy = pickle.loads(pickle.dumps(public))
            assert [each.key for each in copy.list()] == ["a"]
            plainly = list_plainly(public.uri, PUBLIC, "images/", os.environ["AWS_ENDPOINT_URL"], "us-east-1")
            assert [each["path"] for each in plainly] == ["images/a"]
            assert copy.read("a") == b"x"
            for refused in (private.check, lambda: private.read("a")):
                with pytest.raises(StoreError, match=r"there are no AWS credentials, so only .* set AWS_PROFILE"):
                    refused()
            for store in (public, private):
                with pytest.raises(BadInput, match="must be a bucket that you may write, and there are no AWS"):
                    store.check_writable()
        finally:
            s3.delete_object(Bucket=PUBLIC, Key="images/a")
            s3.delete_bucket(Bucket=PUBLIC)

    def test_unknown_profile(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A profile that is not configured is named."""
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(BadInput, match=r"nobody.*check AWS_PROFILE"):
            open_store(bucket)

    def test_unreachable_endpoint(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """An endpoint where nothing listens is told within ten seconds, with its address."""
        endpoint = f"http://127.0.0.1:{closed_port()}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        started = time.monotonic()
        with pytest.raises(BadInput, match=f"no answer from {endpoint}; check the network"):
            open_store(bucket).check()
        assert time.monotonic() - started < 10

    @pytest.mark.slow
    def test_silent_endpoint(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """An endpoint that takes the connection and never answers is told within about ten seconds."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
            started = time.monotonic()
            with pytest.raises(BadInput, match="no answer from"):
                open_store(bucket).check()
            assert time.monotonic() - started < 12


@pytest.fixture
def answers(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, bytes]]]:
    """A server that gives these answers one after the other, then 200 with the body "fine"."""
    queue: list[tuple[int, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = queue.pop(0) if queue else (200, b"fine")
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_HEAD = do_DELETE = do_GET

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield queue
    server.shutdown()
    server.server_close()
    thread.join()


def fault(code: str, message: str = "so it is") -> bytes:
    signed = "<StringToSign>hunter2</StringToSign>"
    return f"<Error><Code>{code}</Code><Message>{message}</Message>{signed}</Error>".encode()


class TestFaults:
    """Faults of a store, staged."""

    def test_overload_is_waited_out(self, bucket: str, answers: list[tuple[int, bytes]]) -> None:
        """A 503 is tried again, and the caller sees nothing of it."""
        answers[:] = [(503, fault("SlowDown"))]
        assert open_store(bucket).read("a") == b"fine"
        assert answers == []

    @pytest.mark.parametrize(
        ("status", "code", "hint"),
        [
            (400, "ExpiredToken", "expired: renew them"),
            (403, "AccessDenied", "must be allowed to list"),
            (403, "RequestTimeTooSkewed", "clock"),
            (301, "PermanentRedirect", "set AWS_REGION"),
        ],
    )
    def test_refusals_come_with_their_cure(
        self, bucket: str, answers: list[tuple[int, bytes]], status: int, code: str, hint: str
    ) -> None:
        """What the user can mend is said in one line, with the cure and nothing that was signed."""
        answers[:] = [(status, fault(code))]
        with pytest.raises(BadInput, match=hint) as caught:
            open_store(bucket).check()
        assert "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("status", "code", "message", "hint"),
        [
            (403, "AccessDenied", "Access Denied", "must be allowed to get it, and to decrypt it"),
            (403, "InvalidObjectState", "The operation is not valid", "it is archived .*: restore it"),
            (
                400,
                "InvalidRequest",
                "It was stored using a form of Server Side Encryption",
                "SSE-C.*: copy it",
            ),
            (404, "NoSuchKey", "The specified key does not exist", "there is no such object"),
        ],
    )
    def test_one_object_is_refused(
        self, bucket: str, answers: list[tuple[int, bytes]], status: int, code: str, message: str, hint: str
    ) -> None:
        """Each reason has a cure of its own, which is about that object and not about the bucket."""
        answers[:] = [(status, fault(code, message))]
        with pytest.raises(StoreError, match=f"^{bucket}/a: read failed: .*{hint}"):
            open_store(bucket).read("a")

    def test_a_store_without_conditional_writes(self, bucket: str, answers: list[tuple[int, bytes]]) -> None:
        """A store that answers 501 to a conditional write is not asked for another: a look and a plain write do it."""
        unknown = (501, fault("NotImplemented", "A header you provided implies functionality"))
        answers[:] = [unknown, (404, fault("NoSuchKey"))]
        store = open_store(bucket)
        assert store.write_if_absent("a", b"") == "1"
        assert not store.conditional
        assert store.write_if_absent("a", b"") is None
        answers[:] = [unknown]  # who knows no If-None-Match may know If-Match
        assert store.replace_if_unchanged("a", b"", "0") is None
        assert store.replace_if_unchanged("a", b"", "1") == "1"
        assert answers == []

    def test_replacing_a_missing_key_may_answer_404(self, bucket: str, answers: list[tuple[int, bytes]]) -> None:
        """Where SeaweedFS answers 412 to If-Match on a missing key, AWS answers 404: both mean it is gone."""
        answers[:] = [(404, fault("NoSuchKey"))] * 2  # the second to the look whether it really is
        assert open_store(bucket).replace_if_unchanged("a", b"", "1") is None

    def test_a_conflicting_write_is_tried_again(self, bucket: str, answers: list[tuple[int, bytes]]) -> None:
        """AWS answers 409 while another write of the key is under way: that one may fail, so it counts for nothing."""
        answers[:] = [(409, fault("ConditionalRequestConflict"))]
        assert open_store(bucket).write_if_absent("a", b"") == "1"
        answers[:] = [(409, fault("ConditionalRequestConflict")), (412, fault("PreconditionFailed"))]
        assert open_store(bucket).write_if_absent("a", b"") is None

    def test_credentials_that_cannot_be_renewed(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """When botocore cannot renew the credentials half-way through, the line gives its reason."""
        store = open_store(bucket)

        def expired(self: object) -> None:
            raise UnauthorizedSSOTokenError

        monkeypatch.setattr(Boto3CredentialProvider, "__call__", expired)
        with pytest.raises(StoreError, match=r"no credentials: .*SSO session.*; renew the credentials"):
            store.read("a")

    def test_a_credential_program_that_fails(
        self, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """When a profile's own program gives no credentials, the line says so."""
        (tmp_path / "config").write_text("[profile mine]\ncredential_process = false\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "mine")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        with pytest.raises(BadInput, match="credential"):
            open_store(bucket).check()


class TestPure:
    """The decisions, without any I/O."""

    def test_one_line_drops_queries_and_passwords(self) -> None:
        """A signed address keeps neither its signature nor its user."""
        text = "HTTP error at https://user:hunter2@host/c/k?sig=hunter2 (timeout)\nDebug source: hunter2"
        assert one_line(text) == "HTTP error at https://host/c/k (timeout)"
        assert (
            one_line("to http://user:hunter2@host:9000 and http://host/a@b")
            == "to http://host:9000 and http://host/a@b"
        )

    def test_explain_keeps_an_unknown_cause(self) -> None:
        """A failure without a hint of its own still says what it was."""
        line = str(explain(ValueError("odd thing"), "s3://b/k", "read"))
        assert line == "s3://b/k: read failed: odd thing; run the same command again"

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_addressable(self, key: str) -> None:
        """Odd but honest keys are let through."""
        assert unaddressable(key) is None


@pytest.mark.parametrize(
    ("variables", "region"),
    [
        ({"AWS_REGION": "eu-north-1"}, "eu-north-1"),
        ({"AWS_DEFAULT_REGION": "eu-south-2"}, "eu-south-2"),
        ({"AWS_REGION": "eu-north-1", "AWS_DEFAULT_REGION": "eu-south-2"}, "eu-north-1"),
        ({"AWS_REGION": ""}, "us-east-1"),
    ],
)
def test_both_names_of_the_region_are_read(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], region: str):
    """AWS_REGION, which our hints name, before boto3's own AWS_DEFAULT_REGION, as AWS's other tools do."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert aws_endpoint_and_region("s3://bucket")[1] == region
