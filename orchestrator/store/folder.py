"""Folder: plain files; each write is a temporary file moved into place."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput
from orchestrator.store.interface import Aside, Missing, Object, Store, StoreError, raise_if_changed, unaddressable

SAMPLES = Path(__file__).parents[1] / "data" / "sample"


class Folder(Store):
    """A folder of files. Use `open_store`."""

    def __init__(self, uri: str, root: str, create: bool = False, read_only: bool = False) -> None:
        self.uri = uri
        self._root, self._create, self._read_only = root, create, read_only

    def __reduce__(self) -> tuple[Any, ...]:
        # a sample is part of the package, which may be installed elsewhere on another machine
        return (
            (open_sample, (self.uri.partition("://")[2],))
            if self._read_only
            else (Folder, (self.uri, self._root, self._create))
        )

    def check(self) -> None:
        if os.path.isdir(self._root):
            if not os.access(self._root, os.R_OK | os.X_OK):
                raise BadInput(f"{self.uri} must be a folder that you may read; change its permissions")
        elif os.path.lexists(self._root):
            raise BadInput(f"{self.uri} must be a folder; it is a file or a broken link; correct the path")
        elif not self._create:
            raise BadInput(f"{self.uri} must be a folder; there is none; correct the path or make the folder")

    def check_writable(self) -> None:
        there = next(str(each) for each in (Path(self._root), *Path(self._root).parents) if os.path.lexists(each))
        try:
            tempfile.TemporaryFile(dir=there).close()  # it never has a name
        except OSError as error:
            cure = "give another output, or change the permissions there"
            raise BadInput(
                f"{self.uri} must be a folder that you may write; {there}: {error.strerror}; {cure}"
            ) from None

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

    def list(self, prefix: str = "", aside: Aside | None = None) -> Iterator[Object]:
        folder = self._path(prefix.rstrip("/")) if prefix else self._root
        if not self._create and not os.path.isdir(self._root):
            raise Missing(f"{self.uri}: list failed: the folder is gone")
        with self._explained(prefix, "list"):
            yield from self._walk(folder, f"{prefix.rstrip('/')}/" if prefix else "", (), aside)

    def _walk(self, folder: str, prefix: str, above: tuple[str, ...], aside: Aside | None) -> Iterator[Object]:
        here = os.path.realpath(folder)
        if here in above:  # a link to a folder above it
            return
        try:
            with os.scandir(folder) as entries:
                every = [(e.name + "/" * os.path.isdir(e.path), e) for e in entries]
        except (FileNotFoundError, NotADirectoryError):  # deleted meanwhile
            return
        named = sorted((pair for pair in every if pair[0][0] != "."), key=lambda pair: os.fsencode(pair[0]))
        if aside:
            aside.hidden += [prefix + name for name, _ in every if name[0] == "."]
            aside.empty += [prefix] * (prefix != "" and not named)
        for name, entry in named:
            if aside and (reason := unaddressable(prefix + entry.name)):
                aside.odd.append((prefix + name, reason))
                continue
            self._checked(prefix + entry.name)
            if name.endswith("/"):
                yield from self._walk(entry.path, prefix + name, (*above, here), aside)
            elif os.path.isfile(entry.path):
                with contextlib.suppress(FileNotFoundError):
                    stat = entry.stat()
                    yield Object(prefix + name, stat.st_size, str(stat.st_mtime_ns))
            elif aside:
                aside.odd.append((prefix + name, "a link that leads nowhere" if entry.is_symlink() else "not a file"))

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

    def append_lines(self, key: str, lines: bytes) -> None:
        path = self._writable(key)
        with self._explained(key, "write"):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "a+b", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                if size and os.pread(file.fileno(), 1, size - 1) != b"\n":  # a writer was killed in the middle of one
                    lines = b"\n" + lines
                left = memoryview(lines)
                try:
                    while left:
                        left = left[file.write(left) :]
                except OSError:
                    file.truncate(size)
                    raise

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
                # _put's temporary files: with 64 random bits in the name, no other program or person made them
                if re.fullmatch(r"\.[0-9a-f]{16}\.tmp", path.name) and path.is_file() and not path.is_symlink():
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


def open_sample(name: str) -> Folder:
    names = sorted(p.name for p in SAMPLES.iterdir() if p.is_dir()) if SAMPLES.is_dir() else []
    if name not in names:
        raise BadInput(f"sample://NAME must name one of: {', '.join(names) or '(none installed)'}; got {name!r}")
    return Folder(f"sample://{name}", str(SAMPLES / name), read_only=True)
