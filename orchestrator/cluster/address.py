"""Address: RAY_ADDRESS -> the address of a Ray that answers, or a line on why there is none."""

import contextlib
import os
import re
import socket
import time

from orchestrator.errors import BadInput

_PATIENCE_S = 30.0
# how every gRPC connection begins, and what the answer's first frame is: its fourth byte says of which type
_HELLO, _SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)), 4


def named_address() -> str:
    """What RAY_ADDRESS says, as in `ray job submit`; nothing where a Ray of this machine alone is to be started."""
    address = os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def wait_for(address: str, patience_s: float = _PATIENCE_S) -> None:
    """Until a Ray answers there. ray.init would try for minutes, and not hear Ctrl-C meanwhile.

    Raises BadInput where the address has another form, none answers in time, or what answers is no Ray.
    """
    if address.startswith("ray://"):
        return
    form = "HOST:PORT of a running cluster's head, such as 10.0.0.5:6379"
    found = re.fullmatch(r"(?:\[([\da-f:.]+)\]|([^:/@\s\[\]]+)):(\d{1,5})", address, re.IGNORECASE)
    if not found or not 0 < int(found[3]) < 2**16:
        raise BadInput(f"RAY_ADDRESS must be {form}, got {address}")
    deadline, why = time.monotonic() + patience_s, ""
    while (left_s := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((found[1] or found[2], int(found[3])), timeout=left_s) as connection:
                if _speaks_grpc(connection):
                    return
        except OSError as error:
            why = error.strerror or str(error)
        else:
            raise BadInput(f"RAY_ADDRESS must be {form}; what listens at {address} is none, but perhaps its dashboard")
        time.sleep(min(1.0, patience_s))
    raise BadInput(f"RAY_ADDRESS must be {form}; {address} has not answered for {patience_s:g} s: {why}")


def _speaks_grpc(connection: socket.socket) -> bool:
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return True
    connection.settimeout(5)
    with contextlib.suppress(TimeoutError):
        connection.sendall(_HELLO)
        return connection.recv(9)[3:4] == bytes((_SETTINGS,))
    return False
