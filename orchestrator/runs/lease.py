"""Lease: who drives a run. One driver at a time: owner.json in the run folder, renewed while its driver lives.

A lease is stale when its process is gone from this machine, or when nobody renewed it for STALE_S of this process's own
time: no clock of another machine is trusted.

Where the store's conditional writes work, at most one driver has the lease. They are tested when the lease is taken. If
some do not work, the driver writes, waits for SETTLE_S and checks whether the lease is still its own.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput
from orchestrator.store import Missing, Store, StoreError
from orchestrator.words import now

KEY = "owner.json"
RENEW_S = 5.0
STALE_S = 20.0
SETTLE_S = 3.0
ROUNDS = 5  # attempts to take the lease while others are faster
# counts the time that the machine sleeps, and nobody can set it
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _unsaid(line: str) -> None:
    """The default for `say`: nobody reads the line."""


class Lease:
    """The right to write a run folder. Use as a context manager: `with Lease(store, on_lost): ...`.

    on_lost: called once, perhaps from another thread, when somebody else has taken the run over.
    say: called with a line for the person before a wait of more than a few seconds.

    Attributes:
        lost: Another driver has this run now.
        trouble: Why the last renewal failed; None if it did not.
        exclusive: The store itself refuses a second driver. If not all its conditional writes work, a driver only reads
            owner.json before each write, and two that start at the same moment may both go on for some time.
    """

    def __init__(
        self, store: Store, on_lost: Callable[[], None], takeover: bool = False, say: Callable[[str], None] = _unsaid
    ) -> None:
        self._store, self._on_lost, self._takeover, self._say = store, on_lost, takeover, say
        self._owner = {
            "host": platform.node(),
            "pid": os.getpid(),
            "started": _process_start(os.getpid()),
            "since": now(),
            "token": uuid.uuid4().hex,
        }
        self._version, self._renewed, self._writes = "", 0.0, 0
        self._renewing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self.lost = False
        self.trouble: StoreError | None = None

    def __enter__(self) -> "Lease":
        for _ in range(ROUNDS):
            if version := self._take():
                self._version = version
                self._thread.start()
                return self
            self._ended.wait(RENEW_S / 5)
        raise BadInput(
            f"one driver at a time may write {self._store.uri}, and others took it each time that this one tried: "
            f"see to it that no other is started, and run the same command again"
        )

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(StoreError):  # without this, it becomes stale
            if not self.lost and self._mine():
                self._store.delete(KEY)

    def holds(self) -> bool:
        """Whether this process may write the run now. After a sleep it asks the store first."""
        if _now() - self._renewed > 2 * RENEW_S:
            self._renew_once()
        return not self.lost and _now() - self._renewed < STALE_S

    def _take(self) -> str | None:
        """The version of the lease, if it is ours now; None if somebody else was faster."""
        seen = _read(self._store)[1] if self._takeover else refuse_if_held(self._store, self._say)
        if seen:
            version = self._store.replace_if_unchanged(KEY, self._text(), seen)
        else:
            version = self._store.write_if_absent(KEY, self._text())
        version = version or self._mine()
        self._renewed = _now()
        version = version and self._store.try_conditions(KEY, self._text(), version)
        if version and not self.exclusive:
            # another driver may have read it before our first write; the last to write has the lease
            self._ended.wait(SETTLE_S)
            return self._mine()
        return version

    def _mine(self) -> str | None:
        """The version of the lease in the store, if it is ours; also if the answer to our write was lost."""
        owner, version = _read(self._store)
        return version if owner.get("token") == self._owner["token"] else None

    @property
    def exclusive(self) -> bool:
        return self._store.conditional

    def _renew(self) -> None:
        while not self.lost and not self._ended.wait(RENEW_S):
            self._renew_once()

    def _renew_once(self) -> None:
        with self._renewing:
            began = _now()
            try:
                version = self._store.replace_if_unchanged(KEY, self._text(), self._version) or self._mine()
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
        self._writes += 1  # so that no two are equal: many stores use a hash of the bytes as the version
        return json.dumps({**self._owner, "renewed": now(), "writes": self._writes}).encode()


def refuse_if_held(store: Store, say: Callable[[str], None] = _unsaid) -> str:
    """Raise BadInput if a driver is at work on this run, and name it. Takes up to STALE_S, and says so first.

    Returns the version of the lease that a dead driver left; empty if there is none.
    """
    owner, version = _read(store)
    if not version or _is_gone(owner):
        return version
    say(
        f"{store.uri} was driven by process {owner.get('pid')} on {owner.get('host')}; "
        f"waiting up to {STALE_S:.0f} s to see whether it is still at work"
    )
    deadline = time.monotonic() + STALE_S
    waited = threading.Event()
    while time.monotonic() < deadline:
        waited.wait(RENEW_S / 5)
        owner, seen = _read(store)
        if not seen:
            return ""
        if seen != version:
            who = f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"
            raise BadInput(
                f"one driver at a time may write {store.uri}, and {who} is at work on it: "
                f"wait for it, stop it, or take over with --takeover"
            )
    return version


class Vigil:
    """Whether a driver is at work on any of some runs, for somebody who looks again and again."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self._stores = stores
        self._seen: dict[int, tuple[str, float]] = {}  # store -> version of its lease, and since when it is that

    def is_over(self) -> bool:
        """Whether there is none: the first look tells for drivers of this machine, others take STALE_S."""
        at_work = [self._at_work(number, store) for number, store in enumerate(self._stores)]  # each is looked at
        return not any(at_work)

    def _at_work(self, number: int, store: Store) -> bool:
        owner, version = _read(store)
        if not version or _is_gone(owner):
            return False
        if self._seen.get(number, ("", 0.0))[0] != version:
            self._seen[number] = version, _now()
        return _now() - self._seen[number][1] < STALE_S


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def _read(store: Store) -> tuple[dict[str, Any], str]:
    """The owner and the version of owner.json; an empty version if there is none."""
    try:
        data, version = store.read_versioned(KEY)
    except Missing:
        return {}, ""
    try:
        owner = json.loads(data)
    except (ValueError, RecursionError):
        owner = None
    return (owner if isinstance(owner, dict) else {}), version


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that has ended."""
    if owner.get("host") != platform.node() or not owner.get("started"):
        return False
    return _process_start(owner.get("pid")) != owner["started"]


def _process_start(pid: object) -> str:
    """The boot and the start time of a process, which no other with its number shares. Empty if it has ended."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path(f'/proc/{int(str(pid))}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, ValueError, IndexError):
        return ""
