"""Serving: a run's page on this machine alone, kept up to date while the run goes on.

The page asks for data.json again and again, which is what is inside report.html, with an ETag: what has not changed is
not sent. The address holds a token, so that no other user of the machine, and no page of the web, can read the run.
"""

import contextlib
import hashlib
import secrets
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from orchestrator.display.page import as_json, gather, page
from orchestrator.errors import BadInput
from orchestrator.runs.folder import Run
from orchestrator.runs.lease import Vigil

_HOSTS = ("127.0.0.1", "localhost")  # of the Host header: any other name was made to point here by somebody else
_LOOK_S = 1.0  # between two looks at the run folder
_SHARE = 0.01  # of the time, at most, that looking takes
_ASKS_S = 5.0  # a page that has not asked for so long is closed
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",  # the page itself says the rest
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@contextlib.contextmanager
def serving(run: Run) -> Iterator[str]:
    """Serve the page of a run until the context ends; gives its address. A page that is open then gets the last state.

    Until there is a board, it answers with the line that says so.
    """
    server = _Server(Look(run))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    try:
        yield server.address
        server.let_pages_see_the_end()
    finally:
        server.shutdown()
        server.server_close()


class Look:
    """What the page shows now: read from the run folder when it is asked for, and not more often than it may cost."""

    def __init__(self, run: Run) -> None:
        self._run, self._vigil = run, Vigil([run.store])
        self._one_at_a_time = threading.Lock()
        self._next_s = 0.0
        self._data: dict[str, Any] = {}
        self._tag, self._text = "", b""

    def data(self) -> dict[str, Any]:
        """What `page` takes. Raises BadInput where there is no board yet."""
        with self._one_at_a_time:
            self._look()
            return self._data

    def text(self) -> tuple[str, bytes]:
        """The same as JSON, with its ETag."""
        with self._one_at_a_time:
            self._look()
            return self._tag, self._text

    def expire(self) -> None:
        """Look again at the next request, whatever it costs."""
        self._next_s = 0.0

    def _look(self) -> None:
        if time.monotonic() < self._next_s:
            return
        began = time.thread_time()
        try:
            data = gather(self._run, self._vigil)
        except BadInput:
            if not self._data:
                raise
        else:
            tag = hashlib.sha256(as_json({**data, "written": None}).encode()).hexdigest()[:32]
            if tag != self._tag:
                self._data, self._tag, self._text = data, tag, as_json(data).encode()
        self._next_s = time.monotonic() + max(_LOOK_S, (time.thread_time() - began) / _SHARE)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, look: Look) -> None:
        self.look, self.token = look, secrets.token_urlsafe(16)
        self.asked_s: float | None = None  # when a page last asked what is new
        self.is_ending, self.end_is_seen = False, threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"

    def let_pages_see_the_end(self) -> None:
        """If a page is open, wait until it has asked for the last state; a few seconds at most."""
        if self.asked_s is not None and time.monotonic() - self.asked_s < _ASKS_S:
            self.look.expire()
            self.is_ending = True
            self.end_is_seen.wait(_ASKS_S)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30

    def do_GET(self) -> None:
        """The page, or what it shows as JSON; nothing else is here."""
        path = self.path.partition("?")[0].encode()
        own = f"/{self.server.token}/".encode()
        try:
            if self.headers.get("Host", "").partition(":")[0] not in _HOSTS:
                self._send(HTTPStatus.FORBIDDEN, b"this page is for this machine alone")
            elif secrets.compare_digest(path, own):
                self._send(HTTPStatus.OK, page(self.server.look.data(), live=True).encode(), "text/html")
            elif secrets.compare_digest(path, own + b"data.json"):
                self._send_data()
            else:
                self._send(HTTPStatus.NOT_FOUND, b"the address must be the one that was printed")
        except BadInput as error:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, str(error).encode())

    def _send_data(self) -> None:
        server = self.server
        server.asked_s = time.monotonic()
        is_ending = server.is_ending  # before it looks
        tag, text = server.look.text()
        if self.headers.get("If-None-Match") == f'"{tag}"':
            self._send(HTTPStatus.NOT_MODIFIED, b"", tag=tag)
        else:
            self._send(HTTPStatus.OK, text, "application/json", tag)
        if is_ending:
            server.end_is_seen.set()

    def _send(self, status: HTTPStatus, body: bytes, kind: str = "text/plain", tag: str = "") -> None:
        self.send_response(status)
        if status is not HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
        if tag:
            self.send_header("ETag", f'"{tag}"')
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing is printed for a request."""
