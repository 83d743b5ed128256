"""Run folders as the grid command leaves them, made without training."""

import io
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from orchestrator.board.table import build_board, build_history
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import Plan, make_plan
from orchestrator.runs.folder import BOARD, HISTORY, Run
from orchestrator.runs.result import Epoch, Result
from orchestrator.spec.code import Code
from orchestrator.spec.networks import Networks
from orchestrator.spec.reading import load_spec, to_yaml
from orchestrator.store import open_store

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
NASTY = f"</script><!--<script>{HOSTILE}\u2028${{1}}{{{{data}}}}%{{x}}&lt;"  # whatever a page may trip over


def write_run(
    uri: str, grid: dict[str, Any], seeds: tuple[int, ...] = (0,), epochs: int = 12, fail: int = 0, drawn: int = 0
) -> Run:
    """A run whose accuracy grows with the batch size and falls with dropout; it overfits from two thirds on.

    Axes that are not settings are arguments of the model. fail: how many of the last trials fail, with a hostile error.
    drawn: how many points a sample draws.
    """
    spec = load_spec(
        yaml.safe_dump(
            {"name": "cats", "data": {"uri": "images"}, "grid": grid, "seeds": list(seeds)}
            | ({"sample": {"points": drawn}} if drawn else {}),
            allow_unicode=True,
        ),
        [] if "epochs" in grid else [f"train.epochs={epochs}"],
    )
    plan = make_plan(spec, Counts(100, 20), "index", Networks({"small_cnn": Code("code", dict.fromkeys(grid, 0))}))
    random = np.random.default_rng(0)
    results = {
        trial.id: _failed(trial.id, epochs) if i < fail else _trained(trial, random)
        for i, trial in enumerate(reversed(plan.trials))
    }
    run = Run(open_store(uri, create=True))
    run.write_plan(to_yaml(spec), plan.shared, [point.id for point in plan.points])
    run.write_tables(
        {
            BOARD: build_board(spec, plan, results),
            HISTORY: build_history(results),
        }
    )
    return run


def board_of(plan: Plan, results: Mapping[str, Result], running: Collection[str] = (), *overrides: str) -> pa.Table:
    """The board of a plan whose spec is the default one, but for these `PATH=VALUE`."""
    spec = load_spec("{name: a, data: {uri: x}, grid: {batch_size: [1]}}", overrides)
    return build_board(spec, plan, results, running)


def _trained(trial, random: np.random.Generator) -> Result:
    size = trial.values.get("batch_size", 32)
    best = 0.7 + 0.02 * math.log2(size) - 0.1 * trial.values.get("dropout", 0.0) + random.normal(0, 0.01)
    count = trial.milestones[-1]
    turn = 2 * count / 3
    history = [
        Epoch(
            epoch=i + 1,
            loss=0.1 + math.exp(-i / 4),
            accuracy=min(1.0, best + 0.1 - 0.3 * math.exp(-i / 3)),
            val_loss=0.3 + math.exp(-min(i, turn) / 4) + 0.05 * max(0.0, i - turn),
            val_accuracy=min(1.0, best - 0.3 * math.exp(-i / 3)),
            train_s=20 / math.sqrt(size),
            images_per_s=5 * math.sqrt(size),
        )
        for i in range(count)
    ]
    return Result(
        trial_id=trial.id,
        status="ok",
        epochs=count,
        history=history,
        peak_memory_mb=800 + 4 * size,
        node="n",
        device="cpu",
    )


def _failed(trial_id: str, epochs: int) -> Result:
    return Result(trial_id=trial_id, status="failed", epochs=epochs, error=f"Diverged: {HOSTILE}")


def add_winner(run: Run, folder: Path, classes: tuple[str, str] = ("cat", "dog")) -> None:
    """What the winner leaves: its facts, those of the data, 30 predictions, 4 of them wrong."""
    png = io.BytesIO()
    Image.fromarray(np.full((28, 28, 3), 90, np.uint8)).save(png, "PNG")
    rows = []
    for i in range(30):
        right = 0.95 - 0.015 * i if i < 26 else 0.4 - 0.1 * (i - 26)  # of its own class; the last four are wrong
        own = i % 2
        probabilities = [right, 1 - right] if own == 0 else [1 - right, right]
        rows.append(
            {
                "path": f"{classes[own]}/{i:02}.png",
                "label": classes[own],
                "predicted": classes[int(np.argmax(probabilities))],
                "probabilities": probabilities,
                "thumbnail": png.getvalue() if i >= 6 else None,
            }
        )
    schema = pa.schema(
        {
            "path": pa.string(),
            "label": pa.string(),
            "predicted": pa.string(),
            "probabilities": pa.list_(pa.float32()),
            "thumbnail": pa.binary(),
        }
    )
    (folder / "models").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "models" / "best-validation.parquet")
    best = {"classes": classes, "values": {"batch_size": 64}, "seed": 0, "versions": {"keras": "3.15.1"}}
    (folder / "models" / "best.json").write_text(json.dumps(best))
    counts = {name: {"training": 50, "validation": 15} for name in classes}
    facts = {"uri": "images", "classes": counts, "image_size": [28, 28], "skipped": 1, "ignored": 2, "packed": False}
    (folder / "dataset.json").write_text(json.dumps(facts))
    run.write_skipped([(f"{classes[0]}/broken.png", "cut short")])
