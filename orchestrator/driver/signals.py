"""Signals: what Ctrl-C and SIGTERM do while a command runs."""

import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def on_signals(act: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `act`; a second one raises KeyboardInterrupt; the next ones do what they did before."""

    def once(number: int, frame: object) -> None:
        install(twice)
        act()

    def twice(number: int, frame: object) -> None:
        restore()
        raise KeyboardInterrupt

    def install(handler: Callable[[int, object], None]) -> None:
        for each in old:
            signal.signal(each, handler)

    def restore() -> None:
        for each, handler in old.items():
            signal.signal(each, handler)

    old = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    install(once)
    try:
        yield
    finally:
        restore()
