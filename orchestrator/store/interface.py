"""Interface: what every store can do, and which keys are valid. Pure, except for the threads that read ahead."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import BadInput

HELD_BYTES = 64 * 2**20


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


@dataclass
class Aside:
    """What a listing leaves out.

    Attributes:
        odd: Keys that not every store can hold, and links that lead nowhere, each with the reason.
        hidden: Files and folders whose names begin with ".".
        empty: Folders without a file in or below them, as keys that end in "/".
    """

    odd: list[tuple[str, str]] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


class Store(ABC):
    """A place that holds objects by key. Pickles without credentials: each process finds its own.

    Every method may raise StoreError; those that read one object raise Missing if it does not exist.
    """

    uri: str
    conditional = True  # False once a condition is known not to work: the store is then read first, and written without

    @abstractmethod
    def list(self, prefix: str = "", aside: Aside | None = None) -> Iterator[Object]:
        """All objects below `prefix` (whole parts of a key: "a" lists "a/b", not "ab"), one page in memory at a time.

        aside: takes what is left out; None: a key that not every store can hold raises StoreError.

        Ascending by key in UTF-8 byte order, but for object stores that list directory by directory (SeaweedFS, S3
        directory buckets: "a/x" comes before "a b" there): sort where the order decides something.
        """

    @abstractmethod
    def read_versioned(self, key: str) -> tuple[bytes, str]:
        """The object's bytes, and the version that `replace_if_unchanged` takes."""

    @abstractmethod
    def read_range(self, expected: Object, start: int, length: int) -> memoryview:
        """At most `length` bytes from byte `start` on; fewer, or none, if the object ends before.

        Raises:
            Changed: The object does not have the size or version given.
        """

    @abstractmethod
    def write(self, key: str, data: bytes, tags: dict[str, str] | None = None) -> str:
        """Create or replace the object, whole or not at all. Returns its version.

        tags: for a bucket's lifecycle rules; a folder ignores them.
        """

    @abstractmethod
    def write_if_absent(self, key: str, data: bytes) -> str | None:
        """Create the object and return its version; None if there is one already.

        Of several writers at once, at most one gets a version. An answer may be lost: in an earlier call that raised
        StoreError, or before a retry inside this one. Then the object may be the caller's although this returns None:
        read it where that matters.
        """

    @abstractmethod
    def replace_if_unchanged(self, key: str, data: bytes, version: str) -> str | None:
        """Replace the object if it still has `version`. Returns the new version; None if it has changed or is gone."""

    def try_conditions(self, key: str, data: bytes, version: str) -> str | None:
        """Test on an object that the caller owns which conditional writes work: `conditional` is right from then on.

        Afterwards the object holds `data`. Returns its new version; None if it no longer had `version`.
        """
        return self.replace_if_unchanged(key, data, version)

    def append_lines(self, key: str, lines: bytes) -> None:
        """Add whole lines to the end of an object, or make it, all of them or none. Nobody else may be writing it.

        Object storage cannot append: there the object is read and written anew, so do that seldom.
        """
        try:
            before = self.read(key)
        except Missing:
            before = b""
        self.write(key, _ended(before) + lines)

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

    def check_writable(self) -> None:
        """Raise BadInput where nothing can be written, as far as that is known without writing."""
        return

    def sweep(self) -> None:
        """Delete what killed writers left behind. Nobody else may be writing."""
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
        """Delete objects, `in_flight` at once; fine if some do not exist."""
        for _ in _in_order(((0, self.delete, (key,)) for key in keys), in_flight):
            pass

    def read_many(self, objects: Iterable[Object], in_flight: int = 128) -> Generator[bytes]:
        """Each object's bytes, in the order given, holding at most `in_flight` objects and 64 MiB, or one object.

        Raises:
            Missing: An object is gone.
            Changed: An object does not have the size or version given.
        """
        yield from _in_order(((o.size, self._read_expected, (o,)) for o in objects), in_flight)

    def read_ranges(self, ranges: Iterable[tuple[Object, int, int]], in_flight: int = 16) -> Generator[memoryview]:
        """The bytes of each (object, start, length), in the order given; limits and errors as in read_many."""
        yield from _in_order(((length, self.read_range, (o, start, length)) for o, start, length in ranges), in_flight)


def _in_order(reads: Iterable[tuple[int, Callable[..., Any], tuple[Any, ...]]], in_flight: int) -> Iterator[Any]:
    """The result of each (bytes expected, function, arguments), in order; several calls run at once."""
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


def _ended(text: bytes) -> bytes:
    """The text with its last line ended."""
    return text + b"\n" * (text != b"" and not text.endswith(b"\n"))


_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_ODD = re.compile(rf"{_CONTROL.pattern}|\\|(?:^|/)(?:/|$|\.)")  # one search, for there may be a million keys


def unaddressable(key: str, *, hidden: bool = False) -> str | None:
    """Why a store may be unable to hold this very key; None if all can. Pure. hidden: parts may begin with "."."""
    if not _ODD.search(key):
        return None
    if _CONTROL.search(key):
        return "must hold no control character and be valid Unicode: rename it"
    if "\\" in key:  # some stores take it for "/"
        return 'must hold no "\\": rename it'
    parts = key.split("/")
    if "" in parts:
        return 'must not begin or end with "/" nor hold "//": rename it'
    if any(part in (".", "..") or (part.startswith(".") and not hidden) for part in parts):
        return 'must have no part that begins with ".": rename it'
    return None


def raise_if_changed(uri: str, expected: Object, size: int, version: str) -> None:
    """Raise Changed, naming both, unless size (bytes) and version are the expected ones. Pure."""
    if (size, version) != (expected.size, expected.version):
        raise Changed(
            f"{uri}/{expected.key}: must be as listed, {expected.size} bytes of version {expected.version}; "
            f"it is {size} bytes of version {version}; list the store again"
        )
