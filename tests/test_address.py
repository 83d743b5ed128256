"""address: a Ray that does not answer is told in time."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator

import pytest

from orchestrator.cluster.address import named_address, wait_for
from orchestrator.errors import BadInput


@contextlib.contextmanager
def server(answer: bytes) -> Iterator[str]:
    """HOST:PORT of something that answers so to whatever it is sent, once."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("foo:bar", "got foo:bar"),
        ("http://10.0.0.5:8265", "got http://10.0.0.5:8265"),
        ("10.0.0.5", "got 10.0.0.5"),
        ("10.0.0.5:99999", "got 10.0.0.5:99999"),
        ("127.0.0.1:9", "127.0.0.1:9 has not answered for 0.1 s: Connection refused"),
        ("[::1]:9", "[::1]:9 has not answered for 0.1 s: "),
        ("nowhere.invalid:6379", "nowhere.invalid:6379 has not answered for 0.1 s: "),
    ],
)
def test_an_address_where_no_ray_is(address: str, says: str) -> None:
    """In one line, which has the form that it must have."""
    with pytest.raises(BadInput, match=rf"^RAY_ADDRESS must be HOST:PORT of a .*{re.escape(says)}"):
        wait_for(address, 0.1)


def test_what_answers_must_be_ray() -> None:
    """As gRPC begins; the dashboard, whose address jobs are submitted to, speaks HTTP."""
    with server(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))) as address:
        wait_for(address)
    with server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address, pytest.raises(BadInput, match="perhaps its dashboard"):
        wait_for(address)


def test_local_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """To Ray, it means one of its own."""
    for value, expected in (("", ""), ("local", ""), ("10.0.0.5:6379", "10.0.0.5:6379")):
        monkeypatch.setenv("RAY_ADDRESS", value)
        assert named_address() == expected
