"""Signals: what Ctrl-C, SIGTERM and a closed terminal do while a command runs."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def on_signals(act: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP call `act`; a second one raises KeyboardInterrupt; the next do what they did before.

    Where SIGHUP is ignored, as under nohup, it stays so.
    """

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

    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return
    old = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if old[signal.SIGHUP] is signal.SIG_IGN:
        del old[signal.SIGHUP]
    install(once)
    try:
        yield
    finally:
        restore()
