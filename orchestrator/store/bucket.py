"""Bucket: obstore for every request; boto3 finds credentials, region, profile and endpoint of s3://."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store, from_url

from orchestrator.errors import BadInput
from orchestrator.store.aws import aws_credentials, list_plainly
from orchestrator.store.hints import explain, no_keys, one_line
from orchestrator.store.interface import Aside, Missing, Object, Store, raise_if_changed, unaddressable

if TYPE_CHECKING:
    from obstore import UpdateVersion

# a stalled server is caught by read_timeout, not by timeout: a large object on a slow line may take minutes
PATIENT = {"timeout": "10m", "read_timeout": "30s", "connect_timeout": "5s"}
PATIENT_RETRY = {
    "max_retries": 8,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(seconds=0.5), "max_backoff": timedelta(seconds=10), "base": 2},
}
BRISK = {"timeout": "4s", "read_timeout": "4s", "connect_timeout": "3s"}
BRISK_RETRY = {"max_retries": 1, "retry_timeout": timedelta(seconds=4)}
ASKING: dict[str, Any] = {"timeout": "2s", "connect_timeout": "1s"}

# an answer that broke off or never came, which only obstore's debug text shows; and AWS's conflict of two writes
_TRANSIENT = r"kind: (Interrupted|Timeout)|ConditionalRequestConflict"
# all transient failures, for requests that obstore must not retry by itself
_PASSING = rf"{_TRANSIENT}|kind: (Connect|Request)|status code: (429|500|502|503|504)"
# a condition that the store does not know; statuses 400 and 405 come with that code, or with Backblaze's words
_UNKNOWN = r"status code: 501|<Code>NotImplemented</Code>|Unsupported header"
_NO_MACHINE = r"token request: .*(/computeMetadata/|/metadata/identity/)"  # that would have credentials
_ETAG_FORMS: tuple[str, ...] = ('"{}"', "{}")  # AWS takes both, Ceph's RADOS Gateway 16.2 only the bare one
_NO_VERSION = "0" * 32


def _attempts(client: Any, passing: str = _TRANSIENT) -> Iterator[contextlib.AbstractContextManager[None]]:
    """Attempts with pauses between them: `for attempt in _attempts(client): with attempt: return ...`.

    obstore itself repeats requests that were refused for the moment, and reads on where an object's body breaks off. It
    does not repeat a listing or a refusal that breaks off, nor a delete or a conditional write whose answer is lost or
    that conflicts with another write. passing: a pattern for the errors that deserve another attempt.
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
            deadline = min(deadline, now + limits["retry_timeout"].total_seconds())  # counted from the first failure
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
        self._signed = True  # False once there are no credentials: what is public can be read
        # whether If-None-Match works, and the ETag forms that If-Match may take, as far as is known
        self._creates, self._etag_forms = True, _ETAG_FORMS

    def __reduce__(self) -> tuple[Any, ...]:
        return Bucket, (self.uri, self._endpoint, self._region)

    @cached_property
    def _client(self) -> Any:
        return self._connect(PATIENT, PATIENT_RETRY)

    @cached_property
    def _asking(self) -> Any:
        """For conditional writes: with retries, obstore would repeat one that is not implemented for a minute."""
        return self._connect(PATIENT, PATIENT_RETRY | {"max_retries": 0})

    def _connect(self, client_options: dict[str, Any], retry_config: dict[str, Any]) -> Any:
        options: dict[str, Any] = {"client_options": client_options, "retry_config": retry_config}
        try:
            if self._scheme != "s3":
                options["client_options"] = client_options | _allowed()
                address = f"{self._scheme}://{self._bucket}"
                self._signed = _finds_credentials(address)
                options |= {} if self._signed else {"skip_signature": True}
                return from_url(address, **options)
            if self._endpoint:
                # both names: obstore also reads the environment, where the second would win over the first
                options |= {"endpoint": self._endpoint, "aws_endpoint_url_s3": self._endpoint}
                options["client_options"] = client_options | {"allow_http": self._endpoint.startswith("http://")}
            self._signed = (credentials := aws_credentials(self.uri)) is not None
            options |= {"credential_provider": credentials} if self._signed else {"skip_signature": True}
            options["region"] = self._region
            return S3Store(self._bucket, disable_bulk_delete=True, **options)
        except (BaseError, ValueError, OSError) as error:
            hint = "; set AZURE_STORAGE_ACCOUNT_NAME" if "Account must be specified" in str(error) else ""
            raise BadInput(f"{self.uri} cannot be opened: {one_line(str(error))}{hint}") from None

    def check_writable(self) -> None:
        if not self._signed:
            raise BadInput(f"{self.uri} must be a bucket that you may write, and {no_keys(self.uri)}")

    def _path(self, key: str) -> str:
        return self._root + self._checked(key)

    @contextlib.contextmanager
    def _explained(self, key: str, action: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, ValueError, OSError) as error:
            where = f"{self.uri}/{key}" if key else self.uri
            raise explain(error, where, action, self._endpoint, self._signed) from None

    def _version(self, meta: Any) -> str:
        # Google's conditional writes use the generation, which its listings leave out
        return str(meta["version"]) if self._scheme == "gs" else _etag(meta)

    def list(self, prefix: str = "", aside: Aside | None = None) -> Iterator[Object]:
        return self._list(self._client, prefix, aside)

    def _list(self, client: Any, prefix: str, aside: Aside | None = None) -> Iterator[Object]:
        below = self._path(prefix.rstrip("/")) + "/" if prefix else self._root
        with self._explained(prefix, "list"):
            for meta in self._metas(client, below, aside is not None):
                path, size = meta["path"], meta["size"]
                key = path[len(self._root) :]
                if not path.startswith(below):
                    continue
                if key.startswith(".") or "/." in key:
                    if aside:
                        aside.hidden.append(key)
                    continue
                if aside and not size and key.endswith("/"):
                    aside.empty.append(key)
                elif aside and (reason := unaddressable(key)):
                    aside.odd.append((key, reason))
                # "dir/", a console's marker of an empty directory, arrives as "dir", which does not exist
                elif size or self.exists(key):
                    yield Object(key if aside else self._checked(key), size, _etag(meta))
                elif aside:
                    aside.empty.append(f"{key}/")

    def _metas(self, client: Any, below: str, with_odd: bool) -> Iterator[Any]:
        """path, size and e_tag of what lies below. with_odd: also of keys that obstore refuses, as those with "//"."""
        count = 0
        try:
            for meta in _list_whole(client, below):
                yield meta
                count += 1
        except BaseError as error:
            if not with_odd or self._scheme != "s3" or "invalid path" not in str(error):
                raise
            everything = list_plainly(self.uri, self._bucket, below, self._endpoint, self._region)
            yield from itertools.islice(everything, count, None)

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
        self._creates = False  # the store does not know the condition, or refuses it although there is no object
        return None if self.exists(key) else self.write(key, data)

    def replace_if_unchanged(self, key: str, data: bytes, version: str) -> str | None:
        while self._etag_forms:
            expected: UpdateVersion = {"e_tag": self._etag_forms[0].format(version), "version": version}
            written = self._put_if(key, data, "replace", expected)
            if written or (written is None and self._current(key) != version):
                return written
            self._etag_forms = self._etag_forms[1:] if written is None else ()
        return self.write(key, data) if self._current(key) == version else None

    def try_conditions(self, key: str, data: bytes, version: str) -> str | None:
        now = self.replace_if_unchanged(key, data, version)
        if now is None or self._scheme != "s3":  # those of Google and Microsoft work
            return now
        if self._etag_forms:
            never: UpdateVersion = {"e_tag": self._etag_forms[0].format(_NO_VERSION)}
            if ignored := self._put_if(key, data, "replace", never):
                self._etag_forms, now = (), ignored
        if self._creates and (ignored := self._put_if(key, data, "write if absent", "create")) is not None:
            self._creates, now = False, ignored or now
        return now

    def _put_if(self, key: str, data: bytes, action: str, condition: Literal["create"] | UpdateVersion) -> str | None:
        """Write in one request. Returns None if the condition was refused, "" if the store does not know it."""
        path = self._path(key)
        with self._explained(key, action):
            try:
                for attempt in _attempts(self._client, _PASSING):
                    with attempt:
                        try:
                            return self._version(obstore.put(self._asking, path, data, mode=condition))
                        except (AlreadyExistsError, PreconditionError) as error:
                            # AWS: another write of this key is under way, and may still fail
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


def _allowed() -> dict[str, Any]:
    """That HTTP may be used, where an endpoint of gs:// or az:// in the environment has it, as an emulator's."""
    endpoints = (os.environ.get(name, "") for name in ("GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"))
    return {"allow_http": any(each.startswith("http://") for each in endpoints)}


@functools.cache
def _finds_credentials(address: str) -> bool:
    """Whether obstore does: where nothing else tells of any, it asks the service of a cloud's machine for them."""
    options: dict[str, Any] = {"client_options": ASKING | _allowed(), "retry_config": BRISK_RETRY}
    try:
        obstore.head(from_url(address, **options), "any")
    except BaseError as error:
        return not re.search(_NO_MACHINE, str(error))
    except FileNotFoundError:
        pass
    return True


def _list_whole(client: Any, below: str) -> Iterator[Any]:
    """obstore's listing. If it breaks off, it starts skipped and skips what was already yielded.

    It cannot resume after the last key: SeaweedFS leaves out "a/b" when asked for what follows "a".
    """
    count, last = 0, None
    for attempt in _attempts(client):
        with attempt:
            metas = itertools.chain.from_iterable(obstore.list(client, below or None, chunk_size=1000))
            skipped = deque(itertools.islice(metas, count), maxlen=1)
            if skipped and skipped[0]["path"] != last:
                raise ValueError("it broke off, and changed before it could be taken up again")
            for meta in metas:
                count, last = count + 1, meta["path"]
                yield meta
            return


def _etag(meta: Any) -> str:
    return (meta["e_tag"] or "").strip('"')
