"""Calibrate: how fast this machine trains. `python -m orchestrator.calibrate` measures it.

It trains a small grid on generated images, as any grid is trained, and writes the times into the folder of the node's
caches. `python -m orchestrator.grid --plan` makes its forecasts from them.
"""

import contextlib
import json
import os
import secrets
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from orchestrator.data.arrays import cache_folder
from orchestrator.data.backbone import find_networks
from orchestrator.data.cache import open_cache
from orchestrator.data.index import Index
from orchestrator.data.indexing import build_index
from orchestrator.driver.summary import count
from orchestrator.errors import BadInput
from orchestrator.plans.forecast import FIRST_GUESS, Counts, Pace
from orchestrator.plans.points import make_plan
from orchestrator.plans.trials import Trial
from orchestrator.runs.context import WorkerContext
from orchestrator.runs.folder import Run
from orchestrator.runs.result import Epoch, Result
from orchestrator.scratch import scratch
from orchestrator.spec.reading import validate
from orchestrator.spec.sections import Data
from orchestrator.store import Store, open_store
from orchestrator.terminal import make_console, without_stderr
from orchestrator.words import clock, now

FILE = "calibration.json"
BATCH_SIZES = (5, 10, 32, 128)
EPOCHS = 4  # the first of them traces and compiles, and is left out
IMAGES = 1280


def read_pace() -> Pace:
    """The pace measured on this machine; a first guess if there is none or it cannot be read."""
    try:
        return Pace.from_tree(json.loads((cache_folder() / FILE).read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return FIRST_GUESS


def calibrate(precisions: tuple[str, ...]) -> tuple[Pace, Path]:
    """Measure how fast this machine trains, and keep it for the forecasts. Returns that, and in which file it is kept.

    Raises BadInput.
    """
    path = cache_folder() / FILE
    if path.exists() and read_pace() is FIRST_GUESS:
        raise BadInput(f"{path} must be a calibration, and is another file: move it, or set ORCHESTRATOR_CACHE_DIR")
    pace = measure(precisions)
    new = path.with_name(f".{FILE}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(asdict(pace), indent=1))
        os.replace(new, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise BadInput(
            f"{path.parent} must be writable: {error.strerror or error}; set ORCHESTRATOR_CACHE_DIR to another"
        ) from None
    return pace, path


def describe_pace(pace: Pace, path: Path) -> list[str]:
    """What was measured, as a person reads it. path: where it is kept."""
    lines = ["precision       batch size  images/s  (one worker of those that run at once, 64x64)"]
    for precision, sizes in pace.step_s.items():
        lines += [f"{precision:<14}  {size:>10}  {size / step_s:>8.0f}" for size, step_s in sizes.items()]
    for precision, sizes in pace.step_s.items():
        if precision != "float32":
            gains = sorted(pace.step_s["float32"][size] / step_s for size, step_s in sizes.items())
            lines.append(f"{precision}: {gains[0]:.1f} to {gains[-1]:.1f} times as fast as float32 here")
    overheads = (
        f"{clock(pace.worker_start_s)} until workers train, {pace.trial_start_s:.1f} s more for each trial, "
        f"{1 / pace.fill_image_s:.0f} images/s into a node's cache; kept in {path}"
    )
    return [*lines, "", overheads]


def measure(precisions: tuple[str, ...]) -> Pace:
    """Train the grid, on all cores or GPUs at once, which slow each other down as in a real run. Raises BadInput."""
    with scratch() as folder, _alone(f"{folder}/cache"):
        _make_images(folder / "images")
        grid = {"batch_size": list(BATCH_SIZES), "precision": list(precisions)}
        tree: dict[str, Any] = {"name": "calibration", "data": {"uri": f"{folder}/images"}, "grid": grid}
        tree |= {"output": str(folder), "train": {"epochs": EPOCHS, "checkpoint_every_s": 3600.0}}
        began = time.monotonic()
        # here, so that reading a calibration does not load Ray, and the time to load it is measured
        from orchestrator.cluster.connect import connect
        from orchestrator.cluster.fanout import fan_out
        from orchestrator.cluster.watch import InOrder

        with connect(validate(tree).resources) as cluster:
            spec = validate({**tree, "seeds": list(range(max(1, cluster.slots)))})
            images = open_store(spec.data.uri)
            index = build_index(images, spec.data)
            counts = count(index)
            plan = make_plan(spec, counts, index.digest, find_networks(spec)[0])
            seen = _Seen()
            run = Run(open_store(f"{folder}/run", create=True))
            never = threading.Event()
            fan_out(
                WorkerContext(spec, index, images, run), cluster, InOrder(plan.trials), seen, stop=never, kill=never
            )
        closing_s = time.monotonic() - seen.last_end_s
        if seen.why or not seen.results:
            raise BadInput(f"nothing could be measured: {seen.why or 'no trial ended'}")
        fill_image_s = _fill_image_s(images, index, spec.data)
        start_s = max(0.0, seen.first_ready_s - began - len(index) * fill_image_s) + closing_s
        return _pace(plan.trials, seen, counts, start_s, fill_image_s)


@contextlib.contextmanager
def _alone(cache: str) -> Iterator[None]:
    """Use a Ray of this machine only, and a cache folder of its own."""
    before = {name: os.environ.pop(name, None) for name in ("RAY_ADDRESS", "ORCHESTRATOR_CACHE_DIR")}
    os.environ["ORCHESTRATOR_CACHE_DIR"] = cache
    try:
        yield
    finally:
        del os.environ["ORCHESTRATOR_CACHE_DIR"]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _fill_image_s(images: Store, index: Index, data: Data) -> float:
    for side in (data.image_size[0] // 2, data.image_size[0] - 1):  # the first time includes loading TensorFlow
        began = time.monotonic()
        with without_stderr():
            open_cache(index, images, data.model_copy(update={"image_size": (side, side)}))
    return (time.monotonic() - began) / len(index)


class _Seen:
    """A cluster.watch.Watch that records what trials report, and when."""

    def __init__(self) -> None:
        self.results: dict[str, Result] = {}
        self.took_s: dict[str, float] = {}  # by trial, from its start on a worker to its end
        self.first_ready_s = self.last_end_s = 0.0
        self.why = ""
        self._since: dict[str, float] = {}

    def started(self, trial_id: str) -> None:
        self._since[trial_id] = time.monotonic()

    def preparing(self, trial_id: str, what: str, done: int, images: int, made: int) -> None:
        pass

    def ready(self, trial_id: str, epochs_done: float) -> None:
        self.first_ready_s = self.first_ready_s or time.monotonic()

    def refused(self, trial: Trial, why: str) -> None:
        self.why = why

    def may_start(
        self, trial: Trial, epochs_done: float, unreadable: Mapping[int, str], node_type: str | None, node_share: float
    ) -> bool:
        return True

    def reached(self, result: Result) -> None:
        pass

    def say(self, line: str) -> None:
        make_console(stderr=True).out(line)

    def over(self) -> bool:
        return bool(self.why)

    def epoch(self, trial_id: str, epoch: Epoch) -> None:
        pass

    def ended(self, result: Result) -> None:
        self.results[result.trial_id] = result
        self.last_end_s = time.monotonic()
        self.took_s[result.trial_id] = self.last_end_s - self._since[result.trial_id]
        self.why = self.why or result.error or ""


def _pace(trials: tuple[Trial, ...], seen: _Seen, counts: Counts, start_s: float, fill_image_s: float) -> Pace:
    step_s: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    validation_s: dict[str, list[float]] = defaultdict(list)
    trial_start_s = []
    for trial in trials:
        epochs = seen.results[trial.id].history[1:]
        train_s, validate_s = (
            statistics.median(getattr(epoch, name) for epoch in epochs) for name in ("train_s", "validate_s")
        )
        precision, size = trial.values["precision"], trial.values["batch_size"]
        step_s[precision][size].append(train_s * size / counts.training)
        validation_s[precision].append(validate_s / counts.validation)
        trial_start_s.append(seen.took_s[trial.id] - EPOCHS * (train_s + validate_s))
    device = next(iter(seen.results.values())).device or "cpu"
    return Pace(
        source=f"measured for small_cnn on {device} at {now()} (python -m orchestrator.calibrate)",
        step_s={p: {b: statistics.median(s) for b, s in sorted(sizes.items())} for p, sizes in step_s.items()},
        validation_image_s={p: statistics.median(s) for p, s in validation_s.items()},
        worker_start_s=start_s,
        trial_start_s=max(0.0, statistics.median(trial_start_s)),
        fill_image_s=fill_image_s,
    )


def _make_images(folder: Path) -> None:
    """Two classes of smooth noise as JPEGs."""
    draw = np.random.default_rng(0)
    for i in range(IMAGES):
        path = folder / f"class{i % 2}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8))
        coarse.resize((200, 200), Image.Resampling.BICUBIC).save(path, quality=85)
