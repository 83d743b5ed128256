"""Page: a run folder -> one HTML page that contains all it shows, needs no network, and can be sent to anyone.

`python -m orchestrator.report RUN` writes report.html into the run folder, as the grid command does when it ends. The
template is page.html beside this file. Data goes into it as JSON, and a content security policy lets nothing run or
load but the page's own.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import pyarrow as pa

from orchestrator import __version__
from orchestrator.board.effects import describe_effects, main_effects
from orchestrator.board.estimates import spread
from orchestrator.board.table import facts
from orchestrator.board.verdict import sentences
from orchestrator.board.views import by_config, curves, fold, verdict
from orchestrator.display.opening import read_board, read_history
from orchestrator.display.table import columns
from orchestrator.errors import BadInput
from orchestrator.metrics import METRICS, recorded, shown
from orchestrator.run.folder import BEST, DATASET, REPORT, SKIPPED, SPEC, VALIDATION, Run, read_parquet
from orchestrator.words import now

_MOST_EPOCHS = 100_000  # in all curves together, about 3 MB; more are thinned out
_MOST_SKIPPED = 100


def write_page(run: Run) -> str:
    """Write the page of a run as it stands, a running one too. Returns its address. Raises BadInput without a board."""
    run.write_report(page(gather(run)))
    return f"{run.store.uri}/{REPORT}"


def gather(run: Run) -> dict[str, Any]:
    """Everything that the page shows, as plain values. What the run folder does not have is None."""
    table = read_board(run.store.uri)
    history = read_history(run.store.uri)
    about = facts(table)
    found = verdict(table, history)
    best = _read_json(run, f"models/{BEST}.json")
    dataset = _read_json(run, DATASET)
    skipped = _read_json(run, SKIPPED) or []
    spec = run.read_if_there(SPEC)
    several_seeds = len(set(table["seed"].to_pylist())) > 1
    listed = dict.fromkeys(["rank", about["metric"], *columns(table, ["peak_memory_mb"])])
    return {
        "name": run.store.uri.rstrip("/").rpartition("/")[2],
        "written": now(),
        "metric": about["metric"],
        "metrics": {name: {"higher": m.better == "higher", "decimals": m.decimals} for name, m in METRICS.items()},
        "charts": [
            {"training": METRICS[name].training_twin, "validation": name}
            for name in shown("board")
            if METRICS[name].computed_from in ("validation", "predictions")
        ],
        "axes": about["axes"],
        "verdict": sentences(found) if found else [],
        "score": spread(found.best.score) if found else None,
        "overfitting": found.overfitting.epoch if found and found.overfitting else None,
        "best_trials": found.best.trial_ids if found else [],
        "board": _columnar(table, list(listed)),
        "configurations": _columnar(folded := by_config(table), folded.column_names) if several_seeds else None,
        "curves": _curves(history),
        "effects": _effects(table, about["axes"]),
        "model": best,
        "validation": _validation(run, best["classes"]) if best else None,
        "dataset": dataset,
        "skipped": {"count": len(skipped), "first": skipped[:_MOST_SKIPPED]},
        "spec": spec.decode(errors="replace") if spec else None,
        "versions": {
            **((best or dataset or {}).get("versions") or {}),
            "this page": f"orchestrator {__version__}, plotly {version('plotly')}",
        },
    }


def page(data: Mapping[str, Any]) -> str:
    """The page as one text. `data` cannot break out of its element: it is JSON without a `<`."""
    from plotly.offline import get_plotlyjs

    template = (files("orchestrator.display") / "page.html").read_text(encoding="utf-8")
    plotly = get_plotlyjs()
    (own,) = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    filled = {
        "title": html.escape(str(data["name"])),
        "scripts": " ".join(f"'sha256-{_sha256(script)}'" for script in (plotly, own)),
        "plotly": plotly,
        "data": json.dumps(_finite(data), separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: filled[mark[1]], template)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _finite(value: Any) -> Any:
    """The value as JSON can hold it: no NaN, no infinity, times as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def _columnar(table: pa.Table, shown: Sequence[str]) -> dict[str, Any]:
    return {"shown": list(shown), "columns": {name: table[name].to_pylist() for name in table.column_names}}


def _curves(history: pa.Table) -> dict[str, Any]:
    """Trial id -> epochs, and the metrics after each, rounded to what a screen can show."""
    step = math.ceil(history.num_rows / _MOST_EPOCHS) or 1
    found = {}
    for trial_id, epochs in curves(history).items():
        kept = [epoch for i, epoch in enumerate(epochs) if i % step == 0 or i == len(epochs) - 1]
        names = [name for name in recorded() if all(epoch.get(name) is not None for epoch in kept)]
        found[trial_id] = {
            "epoch": [epoch["epoch"] for epoch in kept],
            **{name: [float(f"{epoch[name]:.4g}") for epoch in kept] for name in names},
        }
    return found


def _effects(table: pa.Table, axes: Sequence[str]) -> dict[str, Any] | None:
    found = main_effects(fold(table), axes)
    if found is None:
        return None
    return {
        "note": describe_effects(found),
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


def _validation(run: Run, classes: Sequence[str]) -> dict[str, Any] | None:
    """The winner's confusion matrix (rows: the true class), and the images that it got most wrong, worst first."""
    data = run.read_if_there(VALIDATION)
    if data is None:
        return None
    try:
        rows = read_parquet(data).to_pylist()
    except (pa.ArrowException, OSError):
        raise BadInput(
            f"{VALIDATION} in {run.store.uri} is damaged: run the grid again to have it made anew, or delete it"
        ) from None
    place = {name: i for i, name in enumerate(classes)}
    matrix = [[0] * len(classes) for _ in classes]
    for row in rows:
        matrix[place[row["label"]]][place[row["predicted"]]] += 1
    worst = [
        {
            "path": row["path"],
            "label": row["label"],
            "predicted": row["predicted"],
            "probability": row["probabilities"][place[row["label"]]],
            "png": base64.b64encode(row["thumbnail"]).decode(),
        }
        for row in rows
        if row["thumbnail"]
    ]
    return {"classes": list(classes), "matrix": matrix, "worst": sorted(worst, key=lambda each: each["probability"])}


def _read_json(run: Run, key: str) -> Any:
    data = run.read_if_there(key)
    try:
        return json.loads(data) if data else None
    except ValueError:
        raise BadInput(f"{key} in {run.store.uri} must be JSON: run the grid again to write it anew") from None
