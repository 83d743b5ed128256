"""Page: a run folder -> one HTML page that contains all it shows, needs no network, and can be sent to anyone.

`python -m orchestrator.report RUN` writes report.html into the run folder, as the grid command does now and then, and
when it ends. The template is page.html beside this file, with page.css and page.js. Data goes into it as JSON, and a
content security policy lets nothing run or load but the page's own.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import pyarrow as pa

from orchestrator import __version__
from orchestrator.board.classes import for_reading
from orchestrator.board.effects import describe_effects, main_effects
from orchestrator.board.sentences import glance, sentences
from orchestrator.board.table import facts, ranges
from orchestrator.board.verdict import Verdict
from orchestrator.board.views import by_config, common_rung, curves, fold, verdict
from orchestrator.display.opening import read_board, read_history, read_predictions
from orchestrator.display.table import columns
from orchestrator.display.winner import Winner, read_json, read_winner, say_test
from orchestrator.documents import finite
from orchestrator.metrics import METRICS, Metric, recorded
from orchestrator.runs.folder import BEST, DATASET, PROGRESS, REPORT, SAMPLES, SKIPPED, SPEC, Run
from orchestrator.runs.lease import Vigil
from orchestrator.runs.rates import read_rates
from orchestrator.words import now, plain

_MOST_EPOCHS = 100_000  # in all curves together, about 3 MB; more are thinned out
_MOST_SKIPPED = 100


def write_page(run: Run) -> str:
    """Write the page of a run as it stands, a running one too. Returns its address. Raises BadInput without a board."""
    run.write_report(page(gather(run)))
    return f"{run.store.uri}/{REPORT}"


def gather(run: Run, vigil: Vigil | None = None) -> dict[str, Any]:
    """Everything that the page shows, as plain values. What the run folder does not have is None.

    vigil: of somebody who looks at this run again and again.
    """
    is_over = (vigil or Vigil([run.store])).is_over()  # before the board is read: the last one is there then
    progress = None if is_over else read_json(run, PROGRESS)
    running = progress["running"] if progress else {}
    table = _with_running(read_board(run.store.uri), running)
    history = read_history(run.store.uri)
    about = facts(table)
    predictions = read_predictions(run.store.uri)
    found = verdict(table, history, predictions)
    best, dataset = read_json(run, f"models/{BEST}.json"), read_json(run, DATASET)
    skipped, winner = read_json(run, SKIPPED) or [], read_winner(run)
    spec, samples = run.read_if_there(SPEC), run.read_if_there(SAMPLES)
    folded = by_config(table, predictions)
    several_draws = len(set(table["seed"].to_pylist())) > 1 or "fold" in table.column_names
    listed = dict.fromkeys(["rank", "score", about["metric"], *columns(table, ["peak_memory_mb"])])
    return {
        "name": run.store.uri.rstrip("/").rpartition("/")[2],
        "written": now(),
        "metric": "score",
        "score_of": about["metric"],
        "score_is": _score_is(METRICS[about["metric"]]),
        "metrics": {
            name: {"higher": m.better == "higher", "decimals": m.decimals}
            for name, m in [*METRICS.items(), ("score", METRICS[about["metric"]])]
        },
        "charts": [
            {"training": METRICS[name].training_twin, "validation": name}
            for name in dict.fromkeys([METRICS[about["metric"]].recorded, "val_accuracy", "val_loss"])
        ],
        "axes": about["axes"],
        "verdict": [*sentences(found), *about.get("race", []), *say_test(run, table)] if found else [],
        "best": _best(found) if found else None,
        "overfitting": found.overfitting.epoch if found and found.overfitting else None,
        "best_trials": found.best.trial_ids if found else [],
        "is_over": is_over,
        "progress": progress,
        "board": _columnar(table, list(listed)),
        "configurations": _columnar(folded, folded.column_names) if several_draws else None,
        "curves": _curves(history, running),
        "rates": _rates(run) if "rate_used" in table.column_names else [],
        "effects": _effects(table, history, about["axes"]),
        "ranges": {
            name: {"log": each.scale == "log", "high": each.high, "edges": each.edges, "parts": each.parts}
            for name, each in ranges(table).items()
        },
        "model": {**best, "size_bytes": _model_bytes(run)} if best else None,
        "validation": _validation(winner, table) if winner else None,
        "dataset": dataset,
        "skipped": {"count": len(skipped), "first": skipped[:_MOST_SKIPPED]},
        "samples": base64.b64encode(samples).decode() if samples else None,
        "spec": spec.decode(errors="replace") if spec else None,
        "versions": {
            **((best or dataset or {}).get("versions") or {}),
            "this page": f"orchestrator {__version__}, plotly {version('plotly')}",
        },
    }


def _score_is(metric: Metric) -> str:
    if metric.best_of:
        return f"its best {metric.best_of} after any epoch"
    return f"the mean of {metric.name} over the last fifth of its epochs, up to the one that gives it its model"


def page(data: Mapping[str, Any], live: bool = False) -> str:
    """The page as one text. `data` cannot break out of its element: it is JSON without a `<`.

    live: it asks where it came from for data.json, again and again.
    """
    from plotly.offline import get_plotlyjs

    template, style, own = (
        (files("orchestrator.display") / f"page.{end}").read_text(encoding="utf-8") for end in ("html", "css", "js")
    )
    plotly = get_plotlyjs()
    filled = {
        "title": html.escape(str(data["name"])),
        "scripts": " ".join(f"'sha256-{_sha256(script)}'" for script in (plotly, own)),
        "asks": "'self'" if live else "'none'",
        "live": str(live).lower(),
        "style": style,
        "script": own,
        "plotly": plotly,
        "data": as_json(data),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: filled[mark[1]], template)


def as_json(data: Mapping[str, Any]) -> str:
    """What `gather` gives as JSON without a `<`."""
    return json.dumps(finite(data), separators=(",", ":")).replace("<", "\\u003c")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _columnar(table: pa.Table, shown: Sequence[str]) -> dict[str, Any]:
    return {"shown": list(shown), "columns": {name: table[name].to_pylist() for name in table.column_names}}


def _best(found: Verdict) -> dict[str, Any]:
    """The verdict at a glance: the best configuration, its score with the 95% interval, and what to know of it."""
    score = found.best.score
    return {
        "values": {name: plain(value) for name, value in found.best.values.items()},
        "mean": score.mean,
        "half_width": score.half_width,
        "count": score.count,
        "draws": found.best.draws,
        "signs": glance(found),
    }


def _model_bytes(run: Run) -> int | None:
    return next((each.size for each in run.store.list("models") if each.key == f"models/{BEST}.keras"), None)


def _with_running(table: pa.Table, running: Mapping[str, Any]) -> pa.Table:
    """The board as it stands, with what runs by now, and how far that is."""
    rows = table.to_pylist()
    for row in rows:
        if row["trial_id"] in running and row["status"] != "ok":
            history = running[row["trial_id"]]["history"]
            row |= {"status": "running", "rank": None, "error": None, "stopped_because": None}
            row["epochs_trained"] = history[-1]["epoch"] if history else row["epochs_trained"]
    return pa.Table.from_pylist(rows, schema=table.schema) if running else table


def _curves(history: pa.Table, running: Mapping[str, Any]) -> dict[str, Any]:
    """Trial id -> epochs, and the metrics after each, rounded to what a screen can show."""
    step = math.ceil(history.num_rows / _MOST_EPOCHS) or 1
    found, recent = {}, {trial_id: each["history"] for trial_id, each in running.items()}
    ended = curves(history)
    for trial_id in dict.fromkeys([*ended, *recent]):
        epochs = ended.get(trial_id, [])
        last = epochs[-1]["epoch"] if epochs else 0
        epochs += [epoch for epoch in recent.get(trial_id, []) if epoch["epoch"] > last]
        if not epochs:
            continue
        kept = [epoch for i, epoch in enumerate(epochs) if i % step == 0 or i == len(epochs) - 1]
        names = [name for name in recorded() if all(epoch.get(name) is not None for epoch in kept)]
        found[trial_id] = {
            "epoch": [epoch["epoch"] for epoch in kept],
            **{name: [float(f"{epoch[name]:.4g}") for epoch in kept] for name in names},
        }
    return found


def _rates(run: Run) -> list[dict[str, Any]]:
    """What each range test found, and its curve, to what a screen can show."""
    return [
        {
            "values": found.values,
            "rate": found.rate,
            "rates": found.rates,
            "losses": [None if loss is None else float(f"{loss:.4g}") for loss in found.losses],
        }
        for found in read_rates(run)
    ]


def _effects(table: pa.Table, history: pa.Table, axes: Sequence[str]) -> dict[str, Any] | None:
    board, epochs = common_rung(table, history)
    found = main_effects(fold(board), [axis for axis in axes if axis in board.column_names], ranges(board))
    if found is None:
        return None
    return {
        "note": describe_effects(found, epochs),
        "rest": found.rest,
        "axes": [
            {
                "axis": effect.axis,
                "share": effect.share,
                "levels": [
                    {"value": level.value, "mean": level.mean, "std": level.std, "count": level.count}
                    for level in effect.levels
                ],
            }
            for effect in found.axes
        ],
    }


def _validation(winner: Winner, board: pa.Table) -> dict[str, Any]:
    """The winner's confusion matrix (rows: the true class), its figures by class, and its worst images."""
    table = for_reading(winner.table(board))
    return {
        "classes": winner.classes,
        "matrix": winner.matrix.tolist(),
        "says": winner.says(board),
        "figures": _columnar(table, table.column_names),
        "worst": winner.worst(),
    }
