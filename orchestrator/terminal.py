"""Terminal: what is printed on a terminal, into a file or in a notebook's cell, and how wide.

No name and no file controls a terminal, or forges a line.
"""

import contextlib
import html
import io
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment

from orchestrator.words import printable

_REFRESHES_PER_S = 4
_PLAIN: Any = {
    "highlight": False,
    "markup": False,
    "color_system": None,
    "force_terminal": False,
    "force_jupyter": False,
}
_CELL_LINES = 200  # the last ones, of what a run prints into a cell


class _Clean(Console):
    """A console that prints text as `words.printable` has it; Rich's own controls stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=_clean(segment.text))

    def out(self, *objects: Any, **options: Any) -> None:
        """Print each of these as a line of its own, however long."""
        for line in objects:
            super().out(printable(str(line)), **options)


def make_console(stderr: bool = False) -> Console:
    """As wide as the terminal; 200 columns and no colours if the output goes to a file or a job log.

    A command that a notebook runs with `!` prints as into a file, since nothing can be drawn over there.
    """
    if in_notebook():
        return Cell()
    stream = (sys.stderr if stderr else sys.stdout) or io.StringIO()  # as under some schedulers
    if stream.isatty() and "JPY_PARENT_PID" not in os.environ:
        return _Clean(file=stream, highlight=False, markup=False)
    return _Clean(file=stream, width=200, **_PLAIN)


def write(text: str) -> None:
    """Print what programs read: as it is, but cleaned where a person looks at it. What is no UTF-8 becomes ?."""
    print(_clean(text) if sys.stdout and sys.stdout.isatty() else text.encode(errors="replace").decode())


def _clean(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, so that what it displays is shown in a cell."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython.get_ipython() if ipython else None, "kernel", None) is not None


class Cell(_Clean):
    """One output of a notebook's cell that is updated in place: what was printed, and below it what is live."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), width=120, **_PLAIN)
        self._display = sys.modules["IPython"].display
        self._update = threading.Lock()
        self._live = ""
        self._handle: Any = None

    def print(self, *objects: Any, **options: Any) -> None:
        """As Console.print."""
        super().print(*objects, **options)
        self._show()

    def out(self, *objects: Any, **options: Any) -> None:
        """As Console.out."""
        super().out(*objects, **options)
        self._show()

    @contextlib.contextmanager
    def live(self, look: Callable[[], RenderableType]) -> Iterator[None]:
        """Show what `look` gives, again and again."""
        over = threading.Event()

        def refresh() -> None:
            while not over.wait(1 / _REFRESHES_PER_S):
                with self.capture() as captured:
                    super(Cell, self).print(look())
                self._live = captured.get()
                self._show()

        thread = threading.Thread(target=refresh, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._live = ""
            self._show()

    def show(self, *results: Any) -> None:
        """Display objects below, as a notebook shows them."""
        self._display.display(*results)

    def _show(self) -> None:
        printed = "\n".join(self.file.getvalue().splitlines()[-_CELL_LINES:])  # type: ignore[attr-defined]
        text = f"{printed}\n{self._live}".strip("\n")
        data = {"text/plain": text, "text/html": f'<pre style="line-height: 1.3">{html.escape(text)}</pre>'}
        with self._update:
            if self._handle is None:
                self._handle = self._display.display(data, raw=True, display_id=True)
            else:
                self._handle.update(data, raw=True)


def live(console: Console, look: Callable[[], RenderableType]) -> contextlib.AbstractContextManager[object] | None:
    """Shows what `look` gives in place, again and again, from another thread; None where nothing can be drawn over."""
    if isinstance(console, Cell):
        return console.live(look)
    if not console.is_terminal:
        return None
    return Live(console=console, refresh_per_second=_REFRESHES_PER_S, transient=True, get_renderable=look)


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Discard stderr: no setting silences what TensorFlow's libraries print about processors and drivers on loading."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
