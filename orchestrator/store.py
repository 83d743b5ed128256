"""Store: object storage or a folder, behind one small interface. Edge: data and run folders are read and written here.

    s3://BUCKET/PREFIX   obstore for every request; boto3 finds credentials, region, profile and endpoint
    gs:// and az://      obstore, with its own search for credentials
    a folder, file:///   plain files; each write is a temporary file moved into place
    sample://NAME        a read-only folder inside this package

A key is a path below the store's root: parts joined by "/", none of them empty or beginning with ".". Names that begin
with "." are never listed: in a folder they hold temporary files and the lock.

    BadInput             opening: no known address, no folder, no credentials
    └── StoreError       an operation failed for good, after its retries
        ├── Missing      no object has this key
        └── Changed      the object is not the one that was listed
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import math
import os
import re
import secrets
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store, from_url

from orchestrator.errors import BadInput

HELD_BYTES = 64 * 2**20
SAMPLES = Path(__file__).parent / "dataset" / "sample"
FORMS = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, sample://NAME, or a folder"

# read_timeout, not timeout, catches a stalled server: a large object on a slow line may well take minutes
PATIENT = {"timeout": "10m", "read_timeout": "30s", "connect_timeout": "5s"}
PATIENT_RETRY = {
    "max_retries": 8,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(seconds=0.5), "max_backoff": timedelta(seconds=10), "base": 2},
}
BRISK = {"timeout": "4s", "read_timeout": "4s", "connect_timeout": "3s"}
BRISK_RETRY = {"max_retries": 1, "retry_timeout": timedelta(seconds=4)}

# botocore renews what has under 10 minutes left, so a copy of that age may still be used
CREDENTIAL_TTL = timedelta(minutes=9)

# where an answer broke off or never came, which obstore tells in its debug text alone; and AWS's clash of two writes
_TRANSIENT = r"kind: (Interrupted|Timeout)|ConditionalRequestConflict"
# all that passes, where obstore is not to send again by itself
_PASSING = rf"{_TRANSIENT}|kind: (Connect|Request)|status code: (429|500|502|503|504)"
# 400 and 405 come with that code, or in Backblaze's words
_UNKNOWN = r"status code: 501|<Code>NotImplemented</Code>|Unsupported header"
_ETAG_FORMS = ('"{}"', "{}")  # AWS takes both, Ceph's RADOS Gateway 16.2 the bare one alone
_NO_VERSION = "0" * 32

_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_NO_KEYS = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`"
_NO_BUCKET = "correct the bucket's name, or create the bucket"
_DENIED = "these credentials must be allowed to list the bucket and to get, put and delete its objects"
_FULL = "the store is full: free space in it, or have its quota raised"
_EXPIRED = "the credentials have expired: renew them (`aws sso login`, or new keys) and run the same command again"
HINTS = {  # by the store's error code, or else by HTTP status
    "NoSuchBucket": _NO_BUCKET,
    "ContainerNotFound": _NO_BUCKET,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "RequestTimeTooSkewed": "set this machine's clock",
    "AccessDenied": _DENIED,
    "QuotaExceeded": _FULL,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "301": "the bucket is in another region: set AWS_REGION to it",
    "400": "set AWS_REGION to the bucket's region, and check the credentials",
    "401": "check the credentials",
    "403": f"renew the credentials if they have expired; {_DENIED}",
    "404": _NO_BUCKET,
    "503": "the store is overloaded: run the same command again later",
    "507": _FULL,
}


class StoreError(BadInput):
    """One line: which key, what failed, the last cause, what to do. Holds no credential."""


class Missing(StoreError):
    """No object has this key."""


class Changed(StoreError):
    """The object's size or version is not what was expected."""


@dataclass(frozen=True, slots=True)
class Object:
    """One stored object, as it was when listed.

    Attributes:
        key: Path below the store's root, parts joined by "/".
        size: Bytes.
        version: ETag without quotes, or a file's mtime in nanoseconds: differs whenever the content does.
    """

    key: str
    size: int
    version: str


class Store(ABC):
    """A place that holds objects by key. Pickles without credentials: each process finds its own.

    Every method may raise StoreError; those that read one object raise Missing where there is none.
    """

    uri: str
    conditional = True  # False once some condition is known not to hold: its writes are then a look and a plain write

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Object]:
        """All objects below `prefix` (whole parts of a key: "a" lists "a/b", not "ab"), one page in memory at a time.

        Ascending by key in UTF-8 byte order, but for object stores that list directory by directory (SeaweedFS, S3
        directory buckets: "a/x" comes before "a b" there): sort where the order decides something.
        """

    @abstractmethod
    def read_versioned(self, key: str) -> tuple[bytes, str]:
        """The object's bytes, and the version that `replace_if_unchanged` takes."""

    @abstractmethod
    def read_range(self, expected: Object, start: int, length: int) -> memoryview:
        """At most `length` bytes from byte `start` on: fewer, or none, where the object ends before.

        Raises:
            Changed: The object has not the size or version given.
        """

    @abstractmethod
    def write(self, key: str, data: bytes, tags: dict[str, str] | None = None) -> str:
        """Create or replace the object, whole or not at all. Returns its version.

        tags: what a bucket's lifecycle rules may go by; a folder keeps none.
        """

    @abstractmethod
    def write_if_absent(self, key: str, data: bytes) -> str | None:
        """Create the object and return its version; None if there is one already.

        Of several writers at once at most one gets a version. Where an answer was lost, that is after a StoreError or a
        retry unseen from here, the object may be one's own although this gives None: read it where that matters.
        """

    @abstractmethod
    def replace_if_unchanged(self, key: str, data: bytes, version: str) -> str | None:
        """Replace the object if it is still `version` and return the new one; None if it has changed or is gone."""

    def try_conditions(self, key: str, data: bytes, version: str) -> str | None:
        """Find out, on an object of one's own, which conditions of writes hold: `conditional` is right from then on.

        Returns the object's version now, which holds `data`; None if it was not `version` any more.
        """
        return self.replace_if_unchanged(key, data, version)

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete the object; fine if there is none."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether an object has this key."""

    @abstractmethod
    def check(self) -> None:
        """Try the store with one cheap request, within about 10 s.

        Raises:
            BadInput: It cannot be reached or listed; the line says why and what to do.
        """

    def sweep(self) -> None:
        """Delete what writers left that were killed half-way. Nobody else may be writing."""
        return

    @abstractmethod
    def _read_expected(self, expected: Object) -> bytes: ...

    def _checked(self, key: str) -> str:
        if reason := unaddressable(key):
            raise StoreError(f"{self.uri}: the key {key!r} {reason}")
        return key

    def read(self, key: str) -> bytes:
        """The object's bytes."""
        return self.read_versioned(key)[0]

    def delete_many(self, keys: Iterable[str], in_flight: int = 32) -> None:
        """Delete objects, `in_flight` at once; fine where there is none."""
        for _ in _in_order(((0, self.delete, (key,)) for key in keys), in_flight):
            pass

    def read_many(self, objects: Iterable[Object], in_flight: int = 128) -> Iterator[bytes]:
        """Each object's bytes, in the order given, with at most `in_flight` objects and 64 MiB held (or one object).

        Raises:
            Missing: An object is gone.
            Changed: An object has not the size or version given.
        """
        yield from _in_order(((o.size, self._read_expected, (o,)) for o in objects), in_flight)

    def read_ranges(self, ranges: Iterable[tuple[Object, int, int]], in_flight: int = 16) -> Iterator[memoryview]:
        """For each (object, start, length) these bytes, in the order given; bounded and raising as read_many."""
        yield from _in_order(((length, self.read_range, (o, start, length)) for o, start, length in ranges), in_flight)


def _in_order(reads: Iterable[tuple[int, Callable[..., Any], tuple[Any, ...]]], in_flight: int) -> Iterator[Any]:
    """What each (bytes expected, function, arguments) gives, in order, some at once."""
    # threads: obstore waits outside the GIL, and its asyncio interface took 1.3 times as long
    held: deque[tuple[int, Future[Any]]] = deque()
    held_bytes = 0
    pool = ThreadPoolExecutor(in_flight, thread_name_prefix="store-read")
    try:
        for size, read, args in reads:
            while held and (len(held) >= in_flight or held_bytes + size > HELD_BYTES):
                held_bytes -= held[0][0]
                yield held.popleft()[1].result()
            held.append((size, pool.submit(read, *args)))
            held_bytes += size
        while held:
            yield held.popleft()[1].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def open_store(uri: str, *, create: bool = False) -> Store:
    """Open an object store, a folder or a sample, without a request and without writing anything.

    create: A folder may be missing; the first write makes it.

    Raises:
        BadInput: `uri` has no known form, its folder is missing, or there are no credentials for it.
    """
    scheme, slashes, rest = uri.partition(":/")
    if not slashes or "/" in scheme:
        return _open_folder(uri, os.path.abspath(os.path.expanduser(uri)), create)
    scheme, known = scheme.lower(), rest.startswith("/")
    if scheme == "file" and rest.startswith("//"):
        return _open_folder(uri, os.path.abspath(urllib.parse.unquote(rest[1:])), create)
    if known and scheme == "sample":
        return _open_sample(rest[1:].rstrip("/"))
    if known and scheme in ("s3", "gs", "az"):
        bucket, _, prefix = rest[1:].partition("/")
        if not re.fullmatch(r"[\w.-]+", bucket):
            raise BadInput(f"an address must be {FORMS}; got {scheme}:// with no valid bucket name")
        return _open_bucket(scheme, bucket, prefix.strip("/"))
    # the rest of the address stays unsaid: it might hold a password
    raise BadInput(f"an address must be {FORMS}; got one that begins with {scheme + slashes!r}")


def _open_folder(uri: str, root: str, create: bool) -> Folder:
    if not uri:
        raise BadInput(f"an address must be {FORMS}; got nothing")
    folder = Folder(root, root, create)
    folder.check()
    return folder


def _open_sample(name: str) -> Folder:
    names = sorted(p.name for p in SAMPLES.iterdir() if p.is_dir()) if SAMPLES.is_dir() else []
    if name not in names:
        raise BadInput(f"sample://NAME must name one of: {', '.join(names) or '(none installed)'}; got {name!r}")
    return Folder(f"sample://{name}", str(SAMPLES / name), read_only=True)


def _open_bucket(scheme: str, bucket: str, prefix: str) -> Bucket:
    uri = f"{scheme}://{bucket}" + (f"/{prefix}" if prefix else "")
    if reason := unaddressable(prefix, hidden=True) if prefix else None:
        raise BadInput(f"{uri!r}: the prefix {reason}")
    endpoint, region = _aws_endpoint_and_region(uri) if scheme == "s3" else (None, None)
    store = Bucket(uri, endpoint, region)
    _ = store._client  # finds the credentials now, so that a lack of them shows here
    return store


@contextlib.contextmanager
def _aws_session(uri: str) -> Iterator[Any]:
    import boto3  # here: a run on folders needs no boto3, whose import takes a third of a second
    from botocore.exceptions import BotoCoreError

    try:
        yield boto3.Session()
    except (BotoCoreError, ValueError) as error:
        hint = "check AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL and the AWS config file"
        raise BadInput(f"{uri}: the AWS settings do not work: {one_line(str(error))}; {hint}") from None


def _aws_endpoint_and_region(uri: str) -> tuple[str | None, str]:
    with _aws_session(uri) as session:
        endpoint = session.client("s3").meta.endpoint_url
    host = urllib.parse.urlsplit(endpoint).hostname or ""
    amazon = host.startswith("s3.") and host.endswith(".amazonaws.com")
    return None if amazon else endpoint, session.region_name or "us-east-1"


def _aws_credentials(uri: str) -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider

    with _aws_session(uri) as session:
        if session.get_credentials() is None:
            raise BadInput(f"{uri} needs AWS credentials, and there are none: {_NO_KEYS}")
        return Boto3CredentialProvider(session, ttl=CREDENTIAL_TTL)


def unaddressable(key: str, *, hidden: bool = False) -> str | None:
    """Why no store can hold this key under this very name; None if one can. Pure. hidden: parts may begin with "."."""
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in key):
        return "must hold no control character and be valid Unicode: rename it"
    if "\\" in key:  # some stores take it for "/"
        return 'must hold no "\\": rename it'
    parts = key.split("/")
    if "" in parts:
        return 'must not begin or end with "/" nor hold "//": rename it'
    if any(part in (".", "..") or (part.startswith(".") and not hidden) for part in parts):
        return 'must have no part that begins with ".": rename it'
    return None


def one_line(text: str) -> str:
    """The first 300 characters of an error's first line, without what may sign or open a web address. Pure."""
    first = text.strip().partition("\n")[0]
    return re.sub(r"(https?://)(?:[^\s/@]*@)?([^\s?]*)(?:\?\S*)?", r"\1\2", first)[:300]


def explain(error: Exception, where: str, action: str, endpoint: str | None = None) -> StoreError:
    """Turn an object store's failure into one line with a hint. Pure.

    where: The object's or store's address. endpoint: Where requests go, if not the provider's own.
    """
    text = str(error)
    code = re.search(r"<Code>([\w.]+)</Code>", text)
    message = re.search(r"<Message>([^<]*)</Message>", text)
    status = re.search(r"status code: (\d{3})", text)
    missing = code[1] in ("NoSuchKey", "BlobNotFound") if code else isinstance(error, FileNotFoundError)
    if missing:
        return Missing(f"{where}: {action} failed: there is no such object")
    hint = HINTS.get(code[1] if code else "") or HINTS.get(status[1] if status else "") or "run the same command again"
    if code:
        cause = one_line(f"{code[1]}: {message[1]}" if message else code[1]).rstrip(".")
    elif "without LOCATION" in text:
        cause, hint = "the request was sent on to nowhere", HINTS["301"]
    elif provider := re.search(r"credential provider: (.*)", text):
        cause, hint = f"no credentials: {one_line(provider[1])}", "renew the credentials and run the same command again"
    elif status:
        cause = f"HTTP status {status[1]}"
    elif re.search(r"error sending request|timed? ?out|dns error", text, re.IGNORECASE):
        cause = one_line(f"no answer from {endpoint or 'the store'}")
        hint = "check the network" + (" and AWS_ENDPOINT_URL" if endpoint else "")
    elif "response body error" in text:
        cause = one_line(f"the answer from {endpoint or 'the store'} broke off")
        hint = "check the network, and run the same command again"
    else:
        cause = one_line(text)
    return StoreError(f"{where}: {action} failed: {cause}; {hint}")


def _attempts(client: Any, passing: str = _TRANSIENT) -> Iterator[contextlib.AbstractContextManager[None]]:
    """What to leave early once an attempt succeeds: `for attempt in _attempts(client): with attempt: return ...`.

    obstore sends again what was refused for now, and reads on where an object's body breaks off. It leaves to us a
    listing or a refusal that breaks off, and a delete or a conditional write whose answer is lost or that met another.
    """
    limits, deadline = client.retry_config, math.inf
    wait_s, longest_s = (limits["backoff"][name].total_seconds() for name in ("init_backoff", "max_backoff"))
    left = limits["max_retries"]

    @contextlib.contextmanager
    def attempt() -> Iterator[None]:
        nonlocal deadline
        try:
            yield
        except BaseError as error:
            now = time.monotonic()
            deadline = min(deadline, now + limits["retry_timeout"].total_seconds())  # from the first failure on
            if not left or now > deadline or not re.search(passing, str(error)):
                raise

    while True:
        yield attempt()
        time.sleep(wait_s)
        wait_s, left = min(2 * wait_s, longest_s), left - 1


class Bucket(Store):
    """A bucket, or what lies below a prefix in it. Use `open_store`."""

    def __init__(self, uri: str, endpoint: str | None, region: str | None) -> None:
        self.uri = uri
        self._endpoint, self._region = endpoint, region
        self._scheme, _, rest = uri.partition("://")
        self._bucket, _, prefix = rest.partition("/")
        self._root = f"{prefix}/" if prefix else ""
        self._creates, self._etag_forms = True, _ETAG_FORMS  # until known better: what If-None-Match and If-Match do

    def __reduce__(self) -> tuple[Any, ...]:
        return Bucket, (self.uri, self._endpoint, self._region)

    @cached_property
    def _client(self) -> Any:
        return self._connect(PATIENT, PATIENT_RETRY)

    @cached_property
    def _asking(self) -> Any:
        """For conditional writes: obstore would send what is not implemented again and again, for a minute."""
        return self._connect(PATIENT, PATIENT_RETRY | {"max_retries": 0})

    def _connect(self, client_options: dict[str, Any], retry_config: dict[str, Any]) -> Any:
        options: dict[str, Any] = {"client_options": client_options, "retry_config": retry_config}
        try:
            if self._scheme != "s3":
                return from_url(f"{self._scheme}://{self._bucket}", **options)
            if self._endpoint:
                # both names: obstore also reads the environment, where the second would win over the first
                options |= {"endpoint": self._endpoint, "aws_endpoint_url_s3": self._endpoint}
                options["client_options"] = client_options | {"allow_http": self._endpoint.startswith("http://")}
            options |= {"credential_provider": _aws_credentials(self.uri), "region": self._region}
            return S3Store(self._bucket, disable_bulk_delete=True, **options)
        except (BaseError, ValueError, OSError) as error:
            raise BadInput(f"{self.uri} cannot be opened: {one_line(str(error))}") from None

    def _path(self, key: str) -> str:
        return self._root + self._checked(key)

    @contextlib.contextmanager
    def _explained(self, key: str, action: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, ValueError, OSError) as error:
            raise explain(error, f"{self.uri}/{key}" if key else self.uri, action, self._endpoint) from None

    def _version(self, meta: Any) -> str:
        # Google's conditional writes go by generation, which its listings leave out
        return str(meta["version"]) if self._scheme == "gs" else _etag(meta)

    def list(self, prefix: str = "") -> Iterator[Object]:
        return self._list(self._client, prefix)

    def _list(self, client: Any, prefix: str) -> Iterator[Object]:
        below = self._path(prefix.rstrip("/")) + "/" if prefix else self._root
        with self._explained(prefix, "list"):
            for meta in _list_whole(client, below):
                path, size = meta["path"], meta["size"]
                key = path[len(self._root) :]
                if not path.startswith(below) or key.startswith(".") or "/." in key:
                    continue
                # "dir/", a console's marker of an empty directory, arrives as "dir", which does not exist
                if size or self.exists(key):
                    yield Object(self._checked(key), size, _etag(meta))

    def _get(self, key: str) -> tuple[bytes, Any]:
        path = self._path(key)
        with self._explained(key, "read"):
            for attempt in _attempts(self._client):
                with attempt:
                    result = obstore.get(self._client, path)
                    break
            return bytes(result.bytes()), result.meta

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        data, meta = self._get(key)
        return data, self._version(meta)

    def _read_expected(self, expected: Object) -> bytes:
        data, meta = self._get(expected.key)
        raise_if_changed(self.uri, expected, len(data), _etag(meta))
        return data

    def read_range(self, expected: Object, start: int, length: int) -> memoryview:
        path, end = self._path(expected.key), min(start + length, expected.size)
        if start >= end:
            return memoryview(b"")
        with self._explained(expected.key, "read"):
            found = obstore.get(self._client, path, options={"range": (start, end)})
            data = memoryview(found.bytes())
        raise_if_changed(self.uri, expected, found.meta["size"], _etag(found.meta))
        return data

    def write(self, key: str, data: bytes, tags: dict[str, str] | None = None) -> str:
        path = self._path(key)
        with self._explained(key, "write"):
            return self._version(obstore.put(self._client, path, data, tags=tags))

    @property
    def conditional(self) -> bool:  # type: ignore[override]
        return self._creates and bool(self._etag_forms)

    def write_if_absent(self, key: str, data: bytes) -> str | None:
        for _ in range(3 * self._creates):
            version = self._put_if(key, data, "write if absent", "create")
            if version or (version is None and self.exists(key)):
                return version
            if version is not None:
                break
        self._creates = False  # unknown there, or refused though there is nothing
        return None if self.exists(key) else self.write(key, data)

    def replace_if_unchanged(self, key: str, data: bytes, version: str) -> str | None:
        while self._etag_forms:
            expected = {"e_tag": self._etag_forms[0].format(version), "version": version}
            written = self._put_if(key, data, "replace", expected)
            if written or (written is None and self._current(key) != version):
                return written
            self._etag_forms = self._etag_forms[1:] if written is None else ()
        return self.write(key, data) if self._current(key) == version else None

    def try_conditions(self, key: str, data: bytes, version: str) -> str | None:
        now = self.replace_if_unchanged(key, data, version)
        if now is None or self._scheme != "s3":  # Google's and Microsoft's hold
            return now
        if self._etag_forms:
            never = {"e_tag": self._etag_forms[0].format(_NO_VERSION)}
            if ignored := self._put_if(key, data, "replace", never):
                self._etag_forms, now = (), ignored
        if self._creates and (ignored := self._put_if(key, data, "write if absent", "create")) is not None:
            self._creates, now = False, ignored or now
        return now

    def _put_if(self, key: str, data: bytes, action: str, condition: str | dict[str, str]) -> str | None:
        """Write in one request; returns None where the condition was refused, "" where the store knows none such."""
        path = self._path(key)
        with self._explained(key, action):
            try:
                for attempt in _attempts(self._client, _PASSING):
                    with attempt:
                        try:
                            return self._version(obstore.put(self._asking, path, data, mode=condition))
                        except (AlreadyExistsError, PreconditionError) as error:
                            # AWS: another write of this key is under way, and may yet fail
                            if "ConditionalRequestConflict" not in str(error):
                                return None
                            raise
            except BaseError as error:
                if not re.search(_UNKNOWN, str(error)):
                    raise
        return ""

    def _current(self, key: str) -> str | None:
        path = self._path(key)
        with contextlib.suppress(Missing), self._explained(key, "look-up"):
            return self._version(obstore.head(self._client, path))
        return None

    def delete(self, key: str) -> None:
        path = self._path(key)
        with contextlib.suppress(Missing), self._explained(key, "delete"):
            for attempt in _attempts(self._client):
                with attempt:
                    obstore.delete(self._client, path)
                    return

    def exists(self, key: str) -> bool:
        return self._current(key) is not None

    def check(self) -> None:
        next(self._list(self._connect(BRISK, BRISK_RETRY), ""), None)


def _list_whole(client: Any, below: str) -> Iterator[Any]:
    """obstore's listing; where it breaks off, from the start again without what was handed out.

    Not from the last key on: SeaweedFS leaves out "a/b" when asked for what follows "a".
    """
    count, last = 0, None
    for attempt in _attempts(client):
        with attempt:
            metas = itertools.chain.from_iterable(obstore.list(client, below or None, chunk_size=1000))
            again = deque(itertools.islice(metas, count), maxlen=1)
            if again and again[0]["path"] != last:
                raise ValueError("it broke off, and changed before it could be taken up again")
            for meta in metas:
                count, last = count + 1, meta["path"]
                yield meta
            return


def _etag(meta: Any) -> str:
    return (meta["e_tag"] or "").strip('"')


def raise_if_changed(uri: str, expected: Object, size: int, version: str) -> None:
    """Raise Changed, naming both, unless size (bytes) and version are the expected ones. Pure."""
    if (size, version) != (expected.size, expected.version):
        raise Changed(
            f"{uri}/{expected.key}: must be as listed, {expected.size} bytes of version {expected.version}; "
            f"it is {size} bytes of version {version}; list the store again"
        )


class Folder(Store):
    """A folder of files. Use `open_store`."""

    def __init__(self, uri: str, root: str, create: bool = False, read_only: bool = False) -> None:
        self.uri = uri
        self._root, self._create, self._read_only = root, create, read_only

    def __reduce__(self) -> tuple[Any, ...]:
        # a sample lies inside the package, which another machine may keep elsewhere
        return (open_store, (self.uri,)) if self._read_only else (Folder, (self.uri, self._root, self._create))

    def check(self) -> None:
        if os.path.isdir(self._root):
            if not os.access(self._root, os.R_OK | os.X_OK):
                raise BadInput(f"{self.uri} must be a folder that you may read; change its permissions")
        elif os.path.lexists(self._root):
            raise BadInput(f"{self.uri} must be a folder; it is a file or a broken link; correct the path")
        elif not self._create:
            raise BadInput(f"{self.uri} must be a folder; there is none; correct the path or make the folder")

    def _path(self, key: str) -> str:
        return os.path.join(self._root, self._checked(key))

    @contextlib.contextmanager
    def _explained(self, key: str, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or f"{self.uri}/{key}"
            if action != "write" and isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
                raise Missing(f"{self.uri}/{key}: {action} failed: there is no such file") from None
            cure = "check the permissions and the free space there"
            raise StoreError(f"{where}: {action} failed: {error.strerror or error}; {cure}") from None

    def list(self, prefix: str = "") -> Iterator[Object]:
        folder = self._path(prefix.rstrip("/")) if prefix else self._root
        if not self._create and not os.path.isdir(self._root):
            raise Missing(f"{self.uri}: list failed: the folder is gone")
        with self._explained(prefix, "list"):
            yield from self._walk(folder, f"{prefix.rstrip('/')}/" if prefix else "", ())

    def _walk(self, folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[Object]:
        here = os.path.realpath(folder)
        if here in above:  # a link to a folder that holds it
            return
        try:
            with os.scandir(folder) as entries:
                named = [(e.name + "/" * e.is_dir(), e) for e in entries if not e.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):  # deleted meanwhile
            return
        for name, entry in sorted(named, key=lambda pair: os.fsencode(pair[0])):
            self._checked(prefix + entry.name)
            if name.endswith("/"):
                yield from self._walk(entry.path, prefix + name, (*above, here))
            elif entry.is_file():
                with contextlib.suppress(FileNotFoundError):
                    stat = entry.stat()
                    yield Object(prefix + name, stat.st_size, str(stat.st_mtime_ns))

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        path = self._path(key)
        with self._explained(key, "read"), open(path, "rb") as file:
            return file.read(), str(os.fstat(file.fileno()).st_mtime_ns)

    def _read_expected(self, expected: Object) -> bytes:
        data, version = self.read_versioned(expected.key)
        raise_if_changed(self.uri, expected, len(data), version)
        return data

    def read_range(self, expected: Object, start: int, length: int) -> memoryview:
        path = self._path(expected.key)
        with self._explained(expected.key, "read"), open(path, "rb") as file:
            found = os.stat(file.fileno())
            file.seek(start)
            data = memoryview(file.read(length))
        raise_if_changed(self.uri, expected, found.st_size, str(found.st_mtime_ns))
        return data

    def write(self, key: str, data: bytes, tags: dict[str, str] | None = None) -> str:
        version = self._put(key, data, lambda now: True)
        assert version is not None
        return version

    def write_if_absent(self, key: str, data: bytes) -> str | None:
        return self._put(key, data, lambda now: now is None)

    def replace_if_unchanged(self, key: str, data: bytes, version: str) -> str | None:
        return self._put(key, data, lambda now: str(now) == version)

    def _put(self, key: str, data: bytes, wanted: Callable[[int | None], bool]) -> str | None:
        path = self._writable(key)
        temporary = os.path.join(os.path.dirname(path), f".{secrets.token_hex(8)}.tmp")
        with self._explained(key, "write"), contextlib.ExitStack() as clean_up:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(temporary, "xb") as file:
                clean_up.callback(Path(temporary).unlink, missing_ok=True)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            lock = clean_up.enter_context(open(os.path.join(self._root, ".lock"), "ab"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            now = os.stat(path).st_mtime_ns if os.path.exists(path) else None
            if not wanted(now):
                return None
            version = os.stat(temporary).st_mtime_ns
            if now is not None and version <= now:  # the kernel's clock ticks every few ms: two writes may share a tick
                version = now + 1
                os.utime(temporary, ns=(version, version))
            os.replace(temporary, path)
            return str(os.stat(path).st_mtime_ns)

    def sweep(self) -> None:
        with self._explained("", "clear up"):
            for path in Path(self._root).rglob(".*.tmp"):
                path.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        path = self._writable(key)
        with contextlib.suppress(Missing), self._explained(key, "delete"):
            os.unlink(path)

    def exists(self, key: str) -> bool:
        return os.path.isfile(self._path(key))

    def _writable(self, key: str) -> str:
        if self._read_only:
            raise StoreError(f"{self.uri}/{key}: must be in a store that may be written; samples are read-only")
        return self._path(key)
