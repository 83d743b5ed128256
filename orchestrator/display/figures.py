"""Figures: curves, effects and heat maps of a board as Plotly figures, for a notebook. The page draws its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from orchestrator.board.effects import in_order, main_effects, values_of
from orchestrator.board.table import facts, ranges
from orchestrator.board.verdict import mean_curve
from orchestrator.board.views import common_rung, curves, fold
from orchestrator.errors import BadInput
from orchestrator.metrics import METRICS, recorded
from orchestrator.words import did_you_mean, plain

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_CURVES = 8  # configurations, the best first: more lines than that nobody tells apart


def draw_curves(board: pa.Table, history: pa.Table, metric: str | None) -> Figure:
    """What each of the best configurations reached after each epoch: its mean, and the range of its seeds or folds.

    metric: what epochs record, such as val_loss; None: what the board is ranked by. Raises BadInput.
    """
    import plotly.graph_objects as go
    from plotly.colors import qualitative

    name = METRICS[facts(board)["metric"]].recorded if metric is None else metric
    folded = fold(board)[:_CURVES]
    if not folded:
        raise BadInput("there must be a point that is ok to draw curves, and there is none yet")
    own = curves(history, [trial_id for each in folded for trial_id in each.trial_ids])
    lines = [[own[trial_id][: each.epochs] for trial_id in each.trial_ids if trial_id in own] for each in folded]
    means = [mean_curve(each) for each in lines]
    known = [metric for metric in recorded() if all(metric in mean[0] for mean in means if mean)]
    if name not in known:
        raise BadInput(
            f"metric must be one that epochs record ({', '.join(known)}), got {name}{did_you_mean(name, known)}"
        )
    figure = go.Figure()
    for each, own_lines, mean, colour in zip(folded, lines, means, qualitative.Plotly, strict=False):
        epochs = [epoch["epoch"] for epoch in mean]
        if len(own_lines) > 1:
            ends = [[line[i][name] for line in own_lines] for i in range(len(mean))]
            band = [*map(max, ends), *reversed([*map(min, ends)])]
            figure.add_scatter(
                x=[*epochs, *reversed(epochs)], y=band, fill="toself", line_width=0, fillcolor=colour, opacity=0.15,
                hoverinfo="skip", showlegend=False,
            )  # fmt: skip
        values = [epoch[name] for epoch in mean]
        figure.add_scatter(x=epochs, y=values, name=each.label, mode="lines+markers", line_color=colour, marker_size=4)
    title = f"{name}, the best {len(folded)} configurations" if len(folded) > 1 else name
    whole = {"dtick": 1} if max(map(len, means)) <= 8 else {"nticks": 8}  # there is no epoch 1.5
    figure.update_xaxes(title="epoch", tickformat="d", **whole)
    return figure.update_layout(title=title, yaxis_title=name, template="plotly_white")


def draw_effects(board: pa.Table, history: pa.Table) -> Figure:
    """The mean of the score at each value of each axis, over the other axes. Raises BadInput where nothing varies."""
    import plotly.graph_objects as go

    metric = facts(board)["metric"]
    board, _ = common_rung(board, history)
    found = main_effects(
        fold(board), [axis for axis in facts(board)["axes"] if axis in board.column_names], ranges(board)
    )
    if found is None:
        raise BadInput("effects must have an axis with two values whose points are ok, and this board has none")
    figure = go.Figure()
    for effect in found.axes:
        spread = [level.std or 0.0 for level in effect.levels]
        figure.add_scatter(
            x=[f"{effect.axis}={plain(level.value)}" for level in effect.levels],
            y=[level.mean for level in effect.levels],
            error_y={"type": "data", "array": spread, "thickness": 1},
            mode="lines+markers",
            name=f"{effect.axis}: {effect.share:.0%} of the variance",
        )
    title = f"mean {metric} over the other axes, and one standard deviation of the configurations"
    return figure.update_layout(title=title, yaxis_title=metric, template="plotly_white")


def draw_heatmap(board: pa.Table, across: str, down: str) -> Figure:
    """The mean of the score for each pair of values of two axes, of a range its quarters. Raises BadInput."""
    import plotly.graph_objects as go

    axes = [axis for axis in facts(board)["axes"] if axis in board.column_names]
    for axis in (across, down):
        if axis not in axes:
            raise BadInput(f"a heat map must be of two axes ({', '.join(axes)}), got {axis}{did_you_mean(axis, axes)}")
    folded, metric = fold(board), facts(board)["metric"]
    of_x, of_y = (values_of(folded, axis, ranges(board)) for axis in (across, down))
    xs, ys = (list(dict.fromkeys(of[i] for i in in_order(folded, a))) for a, of in ((across, of_x), (down, of_y)))
    cells: list[list[float | None]] = []
    for y in ys:
        pairs = list(zip(folded, of_x, of_y, strict=True))
        rows = [[each.score.mean for each, own_x, own_y in pairs if (own_x, own_y) == (x, y)] for x in xs]
        cells.append([sum(values) / len(values) if values else None for values in rows])
    figure = go.Figure(
        go.Heatmap(
            x=[str(plain(x)) for x in xs], y=[str(plain(y)) for y in ys], z=cells, texttemplate="%{z:.3f}",
            colorscale="Viridis", reversescale=METRICS[metric].better != "higher", colorbar_title=metric,
        )
    )  # fmt: skip
    kind = {"type": "category"}
    return figure.update_layout(
        title=f"mean {metric} over the other axes", xaxis={"title": across, **kind}, yaxis={"title": down, **kind},
        template="plotly_white",
    )  # fmt: skip
