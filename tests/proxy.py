"""Proxy: passes HTTP on to a real server, counts the requests, and stages faults where a rule says so. Loopback only.

Heads and bodies are passed on byte for byte, Host included, so an S3 signature made for the proxy's address holds.

    with Proxy("http://127.0.0.1:8333") as p:  # now lead the client to p.endpoint
        p.rule = lambda request: SLOW_DOWN if request.count <= 2 else None
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal


@dataclass(frozen=True, slots=True)
class Request:
    """What a rule decides by.

    Attributes:
        path: Decoded, no query.
        count: 1 for the first of this method and path, and so on.
        conditional: It has a header If-Match or If-None-Match.
    """

    method: str
    path: str
    count: int
    conditional: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one request.

    Attributes:
        status: Answered in the server's place, which sees nothing of the request, with `code` for S3's error code.
        delay_s: Seconds to wait first.
        unconditional: The server sees nothing of If-Match and If-None-Match. It must take what is not signed.
        cut: After half the server's answer (of its body, or of its head if it has no body) reset the connection, close
            it, or send nothing more.
    """

    status: int = 0
    code: str = ""
    delay_s: float = 0.0
    unconditional: bool = False
    cut: Literal["reset", "close", "stall"] | None = None


SLOW_DOWN = Fault(status=503, code="SlowDown")
EXPIRED = Fault(status=403, code="ExpiredToken")
FULL = Fault(status=507, code="InsufficientStorage")
UNKNOWN, IGNORED = Fault(status=501, code="NotImplemented"), Fault(unconditional=True)
RESET, CLOSE, STALL = Fault(cut="reset"), Fault(cut="close"), Fault(cut="stall")

_CONDITION = re.compile(rb"(?im)^if-(none-)?match:.*\r\n")
Rule = Callable[[Request], Fault | None]


def sometimes(fault: Fault, fraction: float, seed: int) -> Rule:
    """Fault this fraction of the requests: the same ones in every run, in whatever order they arrive."""
    return lambda r: fault if random.Random(f"{seed} {r.method} {r.path} {r.count}").random() < fraction else None


class Proxy:
    """A proxy on a free port. Use as a context manager; leaving it drops every connection.

    Attributes:
        endpoint: "http://127.0.0.1:PORT".
        rule: Called for each request, from many threads; None lets it pass.
        requests: How many requests came, by (method, path), the faulted ones included.
    """

    def __init__(self, upstream: str) -> None:
        address = urllib.parse.urlsplit(upstream)
        self._upstream = (address.hostname, address.port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closing = threading.Event()
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.rule: Rule = lambda request: None
        self.requests: Counter[tuple[str, str]] = Counter()

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closing.set()
            for s in (self._listener, *self._open):  # stalled ones too
                with contextlib.suppress(OSError):
                    s.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(OSError):
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    @contextlib.contextmanager
    def _kept(self, s: socket.socket) -> Iterator[BinaryIO]:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open.add(s)
        try:
            with s, s.makefile("rb") as lines:
                yield lines
        finally:
            with self._lock:
                self._open.discard(s)

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(self._upstream)
        # a connection dropped by either side ends here, and the other side is dropped with it
        with contextlib.suppress(OSError), self._kept(client) as asked, self._kept(server) as answered:
            while not self._closing.is_set() and (head := _head(asked)):
                if re.search(rb"(?im)^expect: *100-continue", head):
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                request, body = self._counted(head), _body(head, asked)
                fault = self.rule(request) or Fault()
                self._closing.wait(fault.delay_s)
                if fault.status:
                    client.sendall(_refusal(fault, head))
                    continue
                server.sendall((_CONDITION.sub(b"", head) if fault.unconditional else head) + body)
                while (head := _head(answered)).startswith(b"HTTP/1.1 100"):
                    pass
                body = b"" if request.method == "HEAD" else _body(head, answered)
                if fault.cut or not head:
                    _cut(client, fault, head, body)
                    return
                client.sendall(head + body)

    def _counted(self, head: bytes) -> Request:
        method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        path = urllib.parse.unquote(target.partition("?")[0])
        with self._lock:
            self.requests[method, path] += 1
            return Request(method, path, self.requests[method, path], bool(_CONDITION.search(head)))


def _head(lines: BinaryIO) -> bytes:
    """Start line and headers with the empty line that ends them; nothing where the other side has closed."""
    head = b""
    while line := lines.readline():
        head += line
        if line == b"\r\n":
            return head
    return b""


def _body(head: bytes, lines: BinaryIO) -> bytes:
    if found := re.search(rb"(?im)^content-length: *(\d+)", head):
        return lines.read(int(found[1]))
    body = b""
    if re.search(rb"(?im)^transfer-encoding: *chunked", head):
        length = 1
        while length:
            line = lines.readline()
            length = int(line.partition(b";")[0] or b"0", 16)
            body += line + lines.read(length + 2)
    return body


def _refusal(fault: Fault, asked: bytes) -> bytes:
    echo = f"<CanonicalRequest>{asked.decode()}</CanonicalRequest>"  # as AWS answers what it cannot verify
    text = f"<Error><Code>{fault.code}</Code><Message>staged</Message>{echo}</Error>"
    head = f"HTTP/1.1 {fault.status} Staged\r\nContent-Length: {len(text.encode())}\r\n\r\n"
    return (head if asked.startswith(b"HEAD ") else head + text).encode()


def _cut(client: socket.socket, fault: Fault, head: bytes, body: bytes) -> None:
    client.sendall(head + body[: len(body) // 2] if body else head[: len(head) // 2])
    if fault.cut == "stall":
        client.recv(1)  # until the client gives up, or the proxy is closed
    elif fault.cut == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
