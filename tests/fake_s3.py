"""Fake S3: one bucket in memory, on loopback, that differs from AWS's as a test wants. It looks at no signature."""

from __future__ import annotations

import hashlib
import re
import sys
import threading
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from xml.sax.saxutils import escape

Condition = Literal["holds", "ignored", "refused", "unsupported", 400, 405, 501]
Answer = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True, slots=True)
class Ways:
    """How a store answers where stores differ.

    A condition holds, is ignored, is refused whatever there is (412), is not implemented (a status), or not supported
    (400, in Backblaze's words).

    Attributes:
        if_match: What becomes of a PUT with If-Match "ETag".
        if_match_bare: The same without the quotes.
        if_none_match: What becomes of a PUT with If-None-Match: *.
        multipart_conditions: Whether the completion of an upload in parts looks at conditions.
        checksums: Takes x-amz-checksum-* headers and bodies in signed chunks.
        by_directory: Lists directory by directory ("a/x" before "a b"), not by key.
    """

    if_match: Condition = "holds"
    if_match_bare: Condition = "holds"
    if_none_match: Condition = "holds"
    multipart_conditions: bool = True
    checksums: bool = True
    by_directory: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came. headers: names in lower case. query: of those given more than once, the last."""

    method: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


class FakeS3:
    """A server on a free port. Use as a context manager.

    Attributes:
        endpoint: "http://127.0.0.1:PORT".
        asked: Every request, in the order of their arrival.
        objects: Key -> bytes.
    """

    def __init__(self, ways: Ways) -> None:
        self._ways, self._lock = ways, threading.Lock()
        self._uploads: dict[str, dict[int, bytes]] = {}
        self.asked: list[Asked] = []
        self.objects: dict[str, bytes] = {}
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeS3:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def env(self) -> dict[str, str]:
        """Environment variables that lead any S3 client here."""
        keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_REGION": "us-east-1"}
        return {**keys, "AWS_ENDPOINT_URL": self.endpoint}

    def answer(self, asked: Asked, body: bytes) -> Answer:
        """Status, headers and body."""
        with self._lock:
            self.asked.append(asked)
            if not self._ways.checksums and (code := _checksum_refusal(asked.headers)):
                return _error(*code)
            if not asked.key:
                return 200, {}, self._listing(asked.query)
            return getattr(self, f"_{asked.method.lower()}")(asked, body)

    def _get(self, asked: Asked, body: bytes) -> Answer:
        if asked.key not in self.objects:
            return _error(404, "NoSuchKey")
        data = self.objects[asked.key]
        about = {"ETag": etag(data), "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", asked.headers.get("range", "")):
            start, end = int(found[1]), min(int(found[2]) + 1, len(data))
            return 206, about | {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}, data[start:end]
        return 200, about, data

    _head = _get

    def _delete(self, asked: Asked, body: bytes) -> Answer:
        self.objects.pop(asked.key, None)
        self._uploads.pop(asked.query.get("uploadId", ""), None)
        return 204, {}, b""

    def _put(self, asked: Asked, body: bytes) -> Answer:
        if upload := asked.query.get("uploadId"):
            self._uploads[upload][int(asked.query["partNumber"])] = body
            return 200, {"ETag": etag(body)}, b""
        if refusal := self._refusal(asked):
            return refusal
        self.objects[asked.key] = body
        return 200, {"ETag": etag(body)}, b""

    def _post(self, asked: Asked, body: bytes) -> Answer:
        if "uploads" in asked.query:
            upload = f"upload{len(self._uploads)}"
            self._uploads[upload] = {}
            return 200, {}, _xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
        if self._ways.multipart_conditions and (refusal := self._refusal(asked)):
            return refusal
        parts = self._uploads.pop(asked.query["uploadId"])
        numbers = re.findall(rb"<PartNumber>(\d+)</PartNumber>", body)
        data = b"".join(parts[int(number)] for number in numbers)
        self.objects[asked.key] = data
        return 200, {}, _xml("CompleteMultipartUploadResult", f"<ETag>{escape(etag(data))}</ETag>")

    def _refusal(self, asked: Asked) -> Answer | None:
        there = etag(self.objects[asked.key]) if asked.key in self.objects else None
        wanted = asked.headers.get("if-match")
        conditions = []
        if wanted is not None:
            way = self._ways.if_match if wanted.startswith('"') else self._ways.if_match_bare
            conditions.append((way, wanted.strip('"') == (there or "").strip('"')))
        if "if-none-match" in asked.headers:
            conditions.append((self._ways.if_none_match, there is None))
        for way, true in conditions:
            if way == "unsupported":
                return _error(400, "InvalidArgument", "Unsupported header received for this API call.")
            if isinstance(way, int):
                return _error(way, "NotImplemented")
            if way == "refused" or (way == "holds" and not true):
                return _error(404, "NoSuchKey") if there is None and wanted else _error(412, "PreconditionFailed")
        return None

    def _listing(self, query: Mapping[str, str]) -> bytes:
        keys = sorted((k for k in self.objects if k.startswith(query.get("prefix", ""))), key=self._place)
        after = query.get("continuation-token")
        rest = keys[keys.index(after) + 1 :] if after else keys
        page = rest[: int(query.get("max-keys", 1000))]
        entries = "".join(
            f"<Contents><Key>{escape(k)}</Key><Size>{len(self.objects[k])}</Size>"
            f"<ETag>{escape(etag(self.objects[k]))}</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for k in page
        )
        more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if len(page) < len(rest) else ""
        cut = f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"
        return _xml("ListBucketResult", f"{cut}{more}<KeyCount>{len(page)}</KeyCount>{entries}")

    def _place(self, key: str) -> Any:
        # a directory's name sorts as it stands, without the "/" behind it
        return key.encode().split(b"/") if self._ways.by_directory else key.encode()


def etag(data: bytes) -> str:
    """As S3 gives it, with quotes: equal for equal bytes."""
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _checksum_refusal(headers: Mapping[str, str]) -> tuple[int, str] | None:
    if headers.get("x-amz-content-sha256", "").startswith("STREAMING-") or "transfer-encoding" in headers:
        return 411, "MissingContentLength"
    if any(re.match("x-amz-(sdk-)?checksum-|x-amz-trailer", name) for name in headers):
        return 501, "NotImplemented"
    return None


def _error(status: int, code: str, message: str = "so it is") -> Answer:
    return status, {}, _xml("Error", f"<Code>{code}</Code><Message>{message}</Message>")


def _xml(name: str, inside: str) -> bytes:
    return f"<{name}>{inside}</{name}>".encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may leave when it likes
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    store: FakeS3

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        _, _, key = urllib.parse.unquote(address.path).lstrip("/").partition("/")
        query = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        size = int(headers.get("content-length", 0))
        body = self._chunks() if "transfer-encoding" in headers else self.rfile.read(size)
        status, more, data = self.store.answer(Asked(self.command, key, query, headers), body)
        self.send_response(status)
        for name, value in more.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _chunks(self) -> bytes:
        data = b""
        while length := int(self.rfile.readline().partition(b";")[0], 16):
            data += self.rfile.read(length + 2)[:-2]
        self.rfile.readline()
        return data

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer
