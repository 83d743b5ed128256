"""Tables: rows and columns as a notebook shows them, over Arrow."""

from __future__ import annotations

import html
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console

from orchestrator.board.views import by_config, effects, sort_board, where
from orchestrator.display.table import as_rich, cell, columns
from orchestrator.words import printable

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

_SHOWN = 20  # rows; the others are said to be there


class Table:
    """Rows and columns. Shown, it has the first rows, and the columns that a person looks at.

    beside: columns that are not shown. notes: lines below it.
    """

    def __init__(self, table: pa.Table, beside: Sequence[str] = (), notes: Sequence[str] = ()) -> None:
        self._table, self._beside, self._notes = table, beside, notes

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]]) -> Table:
        """Columns in the order of the first row's."""
        return cls(pa.Table.from_pylist([dict(row) for row in rows]))

    def to_arrow(self) -> pa.Table:
        """All columns."""
        return self._table

    def to_pandas(self) -> pd.DataFrame:
        """All columns. Needs pandas, which is not installed with this package."""
        frame: pd.DataFrame = self._table.to_pandas()
        return frame

    def to_pylist(self) -> list[dict[str, Any]]:
        """A mapping for each row."""
        rows: list[dict[str, Any]] = self._table.to_pylist()
        return rows

    def __len__(self) -> int:
        rows: int = self._table.num_rows
        return rows

    @property
    def columns(self) -> list[str]:
        """The names of all columns."""
        names: list[str] = self._table.column_names
        return names

    def __getitem__(self, column: str) -> list[Any]:
        """One column's values."""
        values: list[Any] = self._table[column].to_pylist()
        return values

    def _shown(self) -> pa.Table:
        """The first rows, with the columns that a person looks at."""
        table = self._table.drop_columns(list(self._beside)).slice(0, _SHOWN)
        return table.select(columns(table))

    def __repr__(self) -> str:
        width = shutil.get_terminal_size((120, 24)).columns
        console = Console(
            width=width, highlight=False, markup=False, color_system=None, force_terminal=False, force_jupyter=False
        )
        with console.capture() as shown:
            console.print(as_rich(self._table.slice(0, _SHOWN).drop_columns(list(self._beside)), width))
        lines = [line.rstrip() for line in shown.get().splitlines()]
        return "\n".join([*lines, *self._below()])

    def _repr_html_(self) -> str:
        table = self._shown()
        names = table.column_names
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell(row[name], name))}</td>" for name in names) + "</tr>"
            for row in table.to_pylist()
        )
        below = "".join(f"<p>{html.escape(line)}</p>" for line in self._below())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{below}"

    def _below(self) -> list[str]:
        more = [f"and {len(self) - _SHOWN:,} more rows"] if len(self) > _SHOWN else []
        return [*more, *map(printable, self._notes)]


class Board(Table):
    """The leaderboard of a run: one row for each point, the best first."""

    def __init__(self, table: pa.Table, history: pa.Table, predictions: pa.Table | None) -> None:
        super().__init__(table)
        self._history, self._predictions = history, predictions

    def where(self, *conditions: str, **values: Any) -> Board:
        """The rows that fulfil every condition: `board.where("val_accuracy>=0.9", dropout=0.5)`. Raises BadInput."""
        texts = [*conditions, *(f"{name}={value}" for name, value in values.items())]
        return Board(where(self._table, texts), self._history, self._predictions)

    def by_config(self) -> Table:
        """One row for each configuration: mean, deviation and 95% interval over its seeds or folds."""
        return Table(by_config(self._table, self._predictions))

    def effects(self) -> Table:
        """One row for each axis and value: what it does to the score, the axis that matters most first.

        Raises BadInput where no axis has two values that were trained.
        """
        return Table(effects(self._table, self._history)[0])

    def sort(self, column: str) -> Board:
        """Ordered by one column, the best first. Raises BadInput."""
        return Board(sort_board(self._table, column), self._history, self._predictions)
