"""Opened: a run folder as an object. What it shows is read anew each time, so that it is true while the run goes on."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from orchestrator.api.pictures import Pictures, as_files
from orchestrator.api.tables import Board, Table
from orchestrator.board.sentences import sentences
from orchestrator.board.table import facts
from orchestrator.board.verdict import Verdict
from orchestrator.board.views import verdict
from orchestrator.display import opening
from orchestrator.display.figures import draw_curves, draw_effects, draw_heatmap
from orchestrator.display.winner import say_test
from orchestrator.errors import BadInput
from orchestrator.metrics import METRICS, shown
from orchestrator.runs.folder import BEST, REFIT
from orchestrator.terminal import without_stderr
from orchestrator.words import printable

if TYPE_CHECKING:
    import keras
    from plotly.graph_objects import Figure

    from orchestrator.train.conversion import Converted


class OpenRun:
    """A run: its board, what the board says, its winner's model and its charts. Shown, it is the first three.

    uri: the run folder, or its leaderboard; on a disk or in a bucket. Raises BadInput where there is none.
    """

    def __init__(self, uri: str) -> None:
        opening.read_board(uri)  # or say at once that there is none
        self.uri = uri

    def _read(self) -> tuple[pa.Table, pa.Table, pa.Table | None]:
        """Board, history and predictions as they stand."""
        uri = self.uri
        return opening.read_board(uri), opening.read_history(uri), opening.read_predictions(uri)

    @property
    def board(self) -> Board:
        """The leaderboard as it stands."""
        return Board(*self._read())

    @property
    def history(self) -> Table:
        """One row for each trial and epoch."""
        return Table(opening.read_history(self.uri))

    @property
    def verdict(self) -> SaidVerdict | None:
        """Which configuration is best, and how sure that is: values; printed, sentences. None if no point is ok."""
        return _say(*self._read())

    @property
    def best(self) -> Best:
        """The winner's model, as it stands. Raises BadInput where the run folder holds none."""
        return Best(self.uri)

    @property
    def refitted(self) -> Best:
        """The winner, trained once more on the validation images too. Raises BadInput where there is none."""
        return Best(self.uri, REFIT)

    @property
    def plot(self) -> Plots:
        """Charts of the board as it stands, as Plotly figures."""
        return Plots(opening.read_board(self.uri), opening.read_history(self.uri))

    def _look(self) -> tuple[Board, list[str]]:
        """The board, and what it says: the verdict and what stands beside it, a line each."""
        board, history, predictions = self._read()
        found = _say(board, history, predictions)
        beside = [*facts(board).get("race", []), *say_test(opening.open_run(self.uri), board)]
        lines = [*found.sentences, *map(printable, beside)] if found else []
        return Board(board, history, predictions), [*lines, f"run folder: {self.uri}"]

    def __repr__(self) -> str:
        board, lines = self._look()
        return "\n".join([repr(board), "", *lines])

    def _repr_html_(self) -> str:
        board, lines = self._look()
        return board._repr_html_() + "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _say(board: pa.Table, history: pa.Table, predictions: pa.Table | None) -> SaidVerdict | None:
    found = verdict(board, history, predictions)
    if found is None:
        return None
    said = (re.sub(r'--set "(.*?)"', r"\1", line) for line in sentences(found))  # an option is an argument here
    return SaidVerdict(found, [*map(printable, said)])


@dataclass(frozen=True, repr=False)
class SaidVerdict:
    """A verdict: its values, and what it says, a line each."""

    values: Verdict
    sentences: list[str]

    def __repr__(self) -> str:
        return "\n".join(self.sentences)


class Plots:
    """Charts as Plotly figures: of the board as it stood when this was asked for."""

    def __init__(self, board: pa.Table, history: pa.Table) -> None:
        self._board, self._history = board, history

    def curves(self, metric: str | None = None) -> Figure:
        """The best configurations epoch by epoch, mean and range of their seeds. metric: None: what the board ranks by.

        Raises BadInput for a metric that epochs do not record.
        """
        return draw_curves(self._board, self._history, metric)

    def effects(self) -> Figure:
        """The mean score at each value of each axis. Raises BadInput where nothing varies."""
        return draw_effects(self._board, self._history)

    def heatmap(self, across: str, down: str) -> Figure:
        """The mean score for each pair of values of two axes. Raises BadInput for what is no axis."""
        return draw_heatmap(self._board, across, down)


class Best:
    """The winner's model, and what is known of it.

    Attributes:
        facts: What best.json or refit.json says: point_id, values, epoch, metrics, classes, image_size, …
    """

    def __init__(self, uri: str, name: str = BEST) -> None:
        """name: that of its file in models/."""
        run = opening.open_run(uri)
        exported = run.read_model(name)
        if exported is None:
            how = "with refit=True" if name == REFIT else "makes it, unless with export_models none"
            raise BadInput(f"{uri} must hold models/{name}.keras, and holds none: the same call again {how}")
        self._exported, self._file = exported, f"{run.store.uri}/models/{name}.keras"
        self.facts: Mapping[str, Any] = exported.model_dump()

    def model(self) -> keras.Model:
        """The trained model, as a keras.Model. It takes pixels from 0 to 1, of the size in `facts`. Raises BadInput."""
        from orchestrator.train.inference import read_model
        from orchestrator.train.model_file import load

        data, facts, name = read_model(self._file)
        return load(data, name, facts.model)

    def predict(self, images: Pictures) -> Table:
        """What the model says of images, which are prepared as in training.

        images: files and folders, s3:// as well; or (n, height, width, 3) or (height, width, 3) uint8.
        Returns one row for each image, with path, class and probability, and that of every class in `probabilities`; or
        with why it could not be read in `error`. Raises BadInput.
        """
        from orchestrator.display.predictions import as_rows
        from orchestrator.train.inference import classify

        with as_files(images) as (paths, names):
            found = classify(self._file, paths)
        said = [(names.get(path, path), probabilities) for path, probabilities in found.said]
        failures = [{"path": path, "error": why} for path, why in found.failures.items()]
        rows = [*as_rows(said, found.facts), *failures]
        columns = ["path", "class", "probability", "probabilities", *(["error"] if failures else [])]
        return Table(
            pa.table({name: [row.get(name) for row in rows] for name in columns}),
            beside=["probabilities"],
            notes=found.notes,
        )

    def prepare(self, images: Pictures) -> np.ndarray:
        """(n, height, width, 3) float32 in [0, 1]: what `model` takes, prepared as in training.

        images: as of `predict`, and in its order. Raises BadInput where one of them cannot be read.
        """
        from orchestrator.train.inference import find_pictures, prepare

        with as_files(images) as (paths, _):
            found = find_pictures(paths)
            for path, why in found.failures.items():
                raise BadInput(f"{path} must be an image or a folder of images: {why}")
            return prepare(self._exported, found.pictures)

    def export(
        self,
        to: Literal["savedmodel", "tflite", "onnx"],
        output: str | None = None,
        *,
        int8: bool = False,
        data: str | None = None,
        check: bool = True,
    ) -> Converted:
        """Write the model for other programs, and compare what it says; as `python -m orchestrator.export`.

        output: a folder or bucket; None: ./<run>-<format>. data: where the images lie, if they were moved.
        A refitted model, which no image validates, is compared with nothing.
        Returns where it is, and what the comparison came to in `check`. Raises BadInput.
        """
        with without_stderr():
            from orchestrator.train.conversion import convert

        return convert(self._file, to, output, int8, data, check)

    def __repr__(self) -> str:
        known = self.facts["metrics"]
        metrics = ", ".join(f"{name} {METRICS[name].text(known[name])}" for name in shown("table") if name in known)
        return f"{self._file}: {metrics if self.facts['refit'] is None else self.facts['refit']['note']}"
