"""Lease: who drives a run. One driver at a time: owner.json in the run folder, renewed while its driver lives.

A lease is stale when its process is gone from this machine, or when nobody renewed it for STALE_S of this process's own
time: no clock of another machine is trusted.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from orchestrator.errors import BadInput
from orchestrator.store import Missing, Store, StoreError
from orchestrator.words import now

KEY = "owner.json"
RENEW_S = 5.0
STALE_S = 20.0
# runs on while the machine sleeps, and no one can set it
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Lease:
    """The right to write a run folder. Use as a context manager: `with Lease(store, on_lost): ...`.

    on_lost: called once, perhaps from another thread, when somebody else has taken the run over.

    Attributes:
        lost: Somebody else drives this run now.
        trouble: Why the lease could not be renewed the last time; None where it was.
        exclusive: The store refuses a second driver by itself. Where it knows no conditional writes, only a look at
            owner.json before each write does, and two drivers that start in the same moment may both go on.
    """

    def __init__(self, store: Store, on_lost: Callable[[], None], takeover: bool = False) -> None:
        self._store, self._on_lost, self._takeover = store, on_lost, takeover
        self._owner = {
            "host": platform.node(),
            "pid": os.getpid(),
            "started": _process_start(os.getpid()),
            "since": now(),
            "token": uuid.uuid4().hex,
        }
        self._version, self._renewed = "", 0.0
        self._renewing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self.lost, self.exclusive = False, True
        self.trouble: StoreError | None = None

    def __enter__(self) -> "Lease":
        # a look first: a store that ignores conditions would write over another's
        version = None if _read(self._store)[1] else self._store.write_if_absent(KEY, self._text())
        while version is None:
            version = self._replace_stale()
        if ignored := self._store.write_if_absent(KEY, self._text()):  # there is one: ours
            self._store.conditional, version = False, ignored
        self._version, self._renewed, self.exclusive = version, _now(), self._store.conditional
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(StoreError):  # it grows stale by itself
            if not self.lost and _read(self._store)[0].get("token") == self._owner["token"]:
                self._store.delete(KEY)

    def holds(self) -> bool:
        """Whether this process may write the run now. One that slept asks the store, and learns if it was too long."""
        if _now() - self._renewed > 2 * RENEW_S:
            self._renew_once()
        return not self.lost and _now() - self._renewed < STALE_S

    def _replace_stale(self) -> str | None:
        version = _read(self._store)[1]
        if not version:
            return self._store.write_if_absent(KEY, self._text())
        if not self._takeover:
            refuse_if_held(self._store)
        return self._store.replace_if_unchanged(KEY, self._text(), version)

    def _renew(self) -> None:
        while not self.lost and not self._ended.wait(RENEW_S):
            self._renew_once()

    def _renew_once(self) -> None:
        with self._renewing:
            began = _now()
            try:
                version = self._store.replace_if_unchanged(KEY, self._text(), self._version)
                if version is None and _read(self._store)[0].get("token") == self._owner["token"]:
                    version = _read(self._store)[1]  # our own write, whose answer got lost
            except StoreError as error:
                self.trouble = error  # the store may come back; until then nobody else can write either
                return
            self.trouble = None
            if version:
                self._version, self._renewed = version, began
            elif not self.lost:
                self.lost = True
                self._on_lost()

    def _text(self) -> bytes:
        return json.dumps({**self._owner, "renewed": now()}).encode()


def refuse_if_held(store: Store) -> None:
    """Return if nobody drives this run, else raise BadInput that says who does. Takes up to STALE_S to be sure."""
    owner, version = _read(store)
    if not version or _is_gone(owner):
        return
    who = f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"
    deadline = time.monotonic() + STALE_S
    waited = threading.Event()
    while time.monotonic() < deadline:
        waited.wait(RENEW_S / 5)
        if (seen := _read(store)[1]) != version:
            if not seen:
                return
            raise BadInput(
                f"one driver at a time may write {store.uri}, and {who} is at work on it: "
                f"wait for it, stop it, or take over with --takeover"
            )


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def _read(store: Store) -> tuple[dict, str]:
    """The owner and the version of its file; an empty version where there is none."""
    try:
        data, version = store.read_versioned(KEY)
    except Missing:
        return {}, ""
    try:
        owner = json.loads(data)
    except (ValueError, RecursionError):
        owner = None
    return (owner if isinstance(owner, dict) else {}), version


def _is_gone(owner: dict) -> bool:
    """True where the owner was a process of this machine that has ended."""
    if owner.get("host") != platform.node() or not owner.get("started"):
        return False
    return _process_start(owner.get("pid")) != owner["started"]


def _process_start(pid: object) -> str:
    """A mark that no other process with this number has had since the machine started; empty where there is none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path(f'/proc/{int(str(pid))}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, ValueError, IndexError):
        return ""
