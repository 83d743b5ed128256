"""Many small trials, end to end: python tests/benchmarks/bench_heads.py [HEADS].

500 heads, or HEADS, on the cached features of 3,200 training images, 1,024 for each: batch size 64, 5 epochs. The
backbone is one convolution, so that the features cost nothing. It says where a worker's time goes, trial by trial.
Alone on the machine, or the figures say nothing.
"""

import dataclasses
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from bench_scale import command
from PIL import Image

IMAGES, WIDTH, EPOCHS = 4000, 1024, 5  # a fifth of the images validates
HERE = Path(__file__)


spent: dict[str, float] = {}  # in a worker: seconds, of the trial at work


def timed(room: Callable[..., Any], folder: str) -> Callable[..., Any]:
    """The room, each of whose trials writes down when what began and ended in it."""

    def timed_room(work: Any, cluster: Any) -> Any:
        from orchestrator.runs.folder import Run
        from orchestrator.train import trial as module

        found = room(work, cluster)

        def timing(what: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def timed_call(*args: Any, **options: Any) -> Any:
                began = time.perf_counter()
                try:
                    return call(*args, **options)
                finally:
                    spent[what] = spent.get(what, 0.0) + time.perf_counter() - began

            timed_call.timed = True  # type: ignore[attr-defined]
            return timed_call

        for owner, name, what in (
            (Run, "write_result", "result"),
            (Run, "write_checkpoint", "checkpoint"),  # waited for, at the end of a trial
            (Run, "write_model", "model"),
            (module, "write_events", "TensorBoard"),
        ):
            if not hasattr(getattr(owner, name), "timed"):
                setattr(owner, name, timing(what, getattr(owner, name)))

        def run_trial(trial: Any, work: Any, reporter: Any, node: Any) -> Any:
            spent.clear()
            parts = {name: timing(name, getattr(reporter, name)) for name in ("ready", "epoch", "reached")}
            began = time.perf_counter()
            result = found.run_trial(trial, work, dataclasses.replace(reporter, **parts), node)
            epochs = [epoch.train_s + epoch.validate_s for epoch in result.history]
            line = {"began": began, "ended": time.perf_counter(), "epochs": epochs, **spent}
            with open(f"{folder}/{os.getpid()}.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
            return result

        return SimpleNamespace(has_grown=found.has_grown, run_trial=run_trial, check_gpu=lambda: None)

    return timed_room


def make_data(folder: str) -> None:
    """Two classes of noise, of which one is brighter; and a network of one convolution, with WIDTH outputs."""
    import keras

    draw = np.random.default_rng(0)
    for name, mean in (("a", 120), ("b", 130)):
        os.makedirs(f"{folder}/images/{name}")
        for number in range(IMAGES // 2):
            pixels = draw.normal(mean, 60, (28, 28, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(f"{folder}/images/{name}/{number}.png")
    keras.utils.set_random_seed(0)
    pixels = keras.Input((28, 28, 3))
    features = keras.layers.Conv2D(WIDTH // 16, 7, strides=7, activation="relu")(pixels)
    keras.Model(pixels, features).save(f"{folder}/one.keras")


def train_heads(heads: str, folder: str) -> None:
    """The main command, in this process; what its workers train leaves its times in FOLDER/times."""
    from orchestrator.cluster import worker
    from orchestrator.driver.lay_out import Options
    from orchestrator.driver.line import orchestrate
    from orchestrator.spec.reading import read_spec

    spec = {
        "name": "heads",
        "output": f"{folder}/runs",
        "data": {"uri": f"{folder}/images", "image_size": [28, 28]},
        "backbone": {"name": f"{folder}/one.keras", "pooling": "flatten"},
        "train": {"epochs": EPOCHS, "batch_size": 64},
        "grid": {
            "learning_rate": [i / 10**5 for i in range(1, int(heads) // 20 + 1)],
            "dropout": [0.0, 0.2, 0.4, 0.6],
            "l2": [0.0, 1e-5, 1e-4, 1e-3, 1e-2],
        },
    }
    path = Path(folder, "heads.yaml")
    path.write_text(json.dumps(spec))
    worker.load_trial_module = timed(worker.load_trial_module, f"{folder}/times")
    assert orchestrate(read_spec(str(path), []), Options()) == 0
    print(json.dumps({"driver_cpu_s": time.process_time()}))


def main() -> None:
    heads = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as folder:
        command(__file__, "--data", folder)
        os.mkdir(f"{folder}/times")
        wall_s, _, printed = command(__file__, "--train", str(heads), folder)
        driver_s = json.loads(printed.splitlines()[-1])["driver_cpu_s"]
        files = [path.read_text().splitlines() for path in Path(folder, "times").iterdir()]
    workers = [[json.loads(line) for line in lines] for lines in files if len(lines) > 5]
    trials = [trial for own in workers for trial in own[2:]]  # the first ones load, and make features
    gaps = [after["began"] - before["ended"] for own in workers for before, after in itertools.pairwise(own[1:])]
    steps = [EPOCHS * statistics.median(trial["epochs"][1:]) for trial in trials]
    parts = {
        "steps and validation, without tracing": steps,
        "tracing": [sum(trial["epochs"]) - own for trial, own in zip(trials, steps, strict=True)],
        "telling the driver: ready": [trial["ready"] for trial in trials],
        "telling the driver: epochs": [trial.get("epoch", 0.0) + trial.get("reached", 0.0) for trial in trials],
        "from one trial to the next: result, Tune": gaps,
        **{
            f"writing: {what}": [trial.get(what, 0.0) for trial in trials]
            for what in ("checkpoint", "model", "result", "TensorBoard")
        },
    }
    whole = [trial["ended"] - trial["began"] for trial in trials]
    inside = sum(sum(each) for name, each in parts.items() if not name.startswith("from one"))
    print(f"{heads} heads: {wall_s:.1f} s, whole command; {1e3 * driver_s / heads:.1f} ms of the driver's CPU for each")
    print(f"ms of a worker for each trial{'mean':>27}{'median':>9}")
    for what, each_s in (*parts.items(), ("all else in a trial: building, saving", None)):
        mean = (sum(whole) - inside) / len(trials) if each_s is None else statistics.mean(each_s)
        print(f"{what:<47}{1e3 * mean:>9.1f}{'' if each_s is None else f'{1e3 * statistics.median(each_s):>9.1f}'}")
    total = statistics.mean(whole) + statistics.mean(gaps)
    print(f"{'all':<47}{1e3 * total:>9.1f}")
    alone_s = statistics.mean(steps) * heads / len(workers)
    print(f"steps and validation alone would take {len(workers)} workers {alone_s:.1f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--data"]:
        make_data(sys.argv[2])
    elif sys.argv[1:2] == ["--train"]:
        train_heads(*sys.argv[2:])
    else:
        main()
