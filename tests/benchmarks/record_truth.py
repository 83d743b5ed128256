"""Records the small grids on which bench_race.py replays races: every epoch of every configuration, with many seeds.

python tests/benchmarks/record_truth.py DST [--seeds 10] [--minutes M] [--idx-dir DIR]

Each grid tells two classes of Fashion-MNIST apart, on few small images, so that a trial takes two seconds of a core.
Some are ordinary; others are made to mislead whoever stops early: rates over two decades, batches from 4 to 256, heavy
dropout, wrong labels, a start that gets nowhere, and configurations that are all equal. Trials run as in a worker, one
on each core, seed by seed; with --minutes it stops then, and the same command goes on from there.

DST/<grid>-<configuration>-<seed>.npz holds what bench_race.py --pack makes truth.parquet of:
    right     (epochs, ceil(images / 8)) uint8: for each validation image a bit, whether it was right after that epoch
    loss      (epochs, 2) float32: mean cross-entropy of the validation images at even and odd places
"""

import argparse
import gzip
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DEBIAN_IDX_DIR = Path("/usr/share/datasets/fashion-mnist")
T_SHIRT, TROUSERS, PULLOVER, DRESS, COAT, SANDAL, SHIRT, SNEAKER, BAG, BOOT = range(10)
BATCHES = [5, 10, 16, 32]


def grid(
    name: str,
    pair: tuple[int, int],
    axes: dict[str, list[Any]],
    epochs: int = 20,
    train: int = 240,
    validate: int = 480,
    wrong: float = 0.0,
    **spec: Any,
) -> dict[str, Any]:
    """One truth grid. train, validate: images. wrong: the share of them that lie in the other class' folder."""
    return {
        "name": name, "pair": pair, "axes": axes, "epochs": epochs, "images": (train, validate), "wrong": wrong,
        "spec": spec,
    }  # fmt: skip


DROPOUT_L2 = {"dropout": [0.0, 0.25, 0.5], "l2": [0.0, 0.001]}
GRIDS = [
    grid("shirts", (T_SHIRT, SHIRT), {"batch_size": BATCHES, **DROPOUT_L2}),
    grid("coats", (PULLOVER, COAT), {"batch_size": BATCHES, **DROPOUT_L2}),
    grid("shirt or coat", (SHIRT, COAT), {"batch_size": BATCHES, **DROPOUT_L2}, epochs=30),
    grid("shirt or pullover", (SHIRT, PULLOVER), {"batch_size": BATCHES, **DROPOUT_L2}),
    grid("dress or coat", (DRESS, COAT), {"batch_size": BATCHES, **DROPOUT_L2}, train=120),
    grid("shoes", (SNEAKER, BOOT), {"batch_size": BATCHES, **DROPOUT_L2}, train=100),
    grid("rates", (T_SHIRT, SHIRT), {"batch_size": [8, 32], "dropout": [0.0, 0.25, 0.5, 0.7],
         "learning_rate": [0.0003, 0.001, 0.003]}, epochs=24),
    grid("rates of coats", (PULLOVER, COAT), {"batch_size": [8, 16, 32], "dropout": [0.0, 0.3, 0.6],
         "learning_rate": [0.0003, 0.001, 0.003, 0.006]}, epochs=27),
    grid("two decades", (SHIRT, COAT), {"batch_size": [8, 32], "optimizer": ["adam", "sgd", "rmsprop"],
         "learning_rate": [0.0001, 0.0003, 0.001, 0.003, 0.01]}),
    grid("two decades of shirts", (T_SHIRT, SHIRT), {"optimizer": ["adam", "adagrad", "nadam"], "dropout": [0.0, 0.4],
         "learning_rate": [0.0001, 0.0003, 0.001, 0.003, 0.01]}, epochs=24),
    grid("all batches", (T_SHIRT, SHIRT), {"batch_size": [4, 16, 64, 256],
         "dropout": [0.0, 0.2, 0.35, 0.5, 0.6, 0.7]}, epochs=24, train=320),
    grid("all batches of coats", (PULLOVER, COAT), {"batch_size": [4, 16, 64, 256], "dropout": [0.0, 0.35, 0.7],
         "learning_rate": [0.0005, 0.002]}, epochs=30, train=320),
    grid("wrong labels", (DRESS, SHIRT), {"batch_size": BATCHES, **DROPOUT_L2}, epochs=30, wrong=0.15),
    grid("wrong labels, rates", (SNEAKER, BOOT), {"batch_size": [8, 32], "dropout": [0.0, 0.3, 0.6],
         "learning_rate": [0.0003, 0.001, 0.003, 0.01]}, wrong=0.1),
    grid("dead start", (T_SHIRT, SHIRT), {"batch_size": [8, 32], "dropout": [0.0, 0.5],
         "learning_rate": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]}, epochs=24,
         **{"train.optimizer": "sgd"}),
    grid("dead start of coats", (PULLOVER, COAT), {"batch_size": [5, 16], "dropout": [0.0, 0.3, 0.6],
         "learning_rate": [0.003, 0.01, 0.03, 0.1]}, epochs=30,
         **{"train.optimizer": "sgd"}),
    grid("equals", (SHIRT, COAT), {"batch_size": [16], "dropout": [0.25 + 0.001 * i for i in range(24)]}),
    grid("equals of shirts", (T_SHIRT, SHIRT), {"batch_size": [10], "dropout": [0.4 + 0.001 * i for i in range(24)]},
         validate=960),
    grid("augmented", (T_SHIRT, SHIRT), {"batch_size": [8, 32], "rotation_deg": [0.0, 15.0],
         "horizontal_flip": [False, True], "dropout": [0.0, 0.3, 0.6]}, epochs=24, train=160),
    grid("augmented coats", (PULLOVER, COAT), {"batch_size": [8, 32], "rotation_deg": [0.0, 20.0],
         "width_shift": [0.0, 0.1], "dropout": [0.0, 0.3, 0.6]}, epochs=30, train=160),
    grid("many judges", (SHIRT, PULLOVER), {"batch_size": BATCHES, **DROPOUT_L2}, validate=3200),
    grid("many judges, rates", (T_SHIRT, SHIRT), {"batch_size": [8, 16, 32], "dropout": [0.0, 0.25, 0.5],
         "learning_rate": [0.0003, 0.001, 0.003, 0.006]}, validate=3200),
    grid("dense", (PULLOVER, COAT), {"hidden": [16, 64, 256], "dropout": [0.0, 0.3, 0.6], "batch_size": BATCHES},
         epochs=27, model="record_truth:dense"),
    grid("dense, rates", (T_SHIRT, SHIRT), {"hidden": [32, 128], "dropout": [0.0, 0.5], "batch_size": [8, 32],
         "learning_rate": [0.0003, 0.001, 0.003]}, epochs=24, model="record_truth:dense"),
]  # fmt: skip


def dense(input_shape: tuple[int, int, int], classes: int, hidden: int = 64, dropout: float = 0.0) -> Any:
    """One hidden layer on the pixels."""
    from keras import Input, Model, layers

    image = Input(input_shape)
    x = layers.Dense(hidden, activation="relu")(layers.Flatten()(image))
    x = layers.Dropout(dropout)(x)
    return Model(image, layers.Dense(1, activation="sigmoid", dtype="float32")(x))


def configurations(one: dict[str, Any]) -> list[dict[str, Any]]:
    """All combinations of a grid's axes, in the order of their numbers."""
    return [dict(zip(one["axes"], values, strict=True)) for values in itertools.product(*one["axes"].values())]


def write_images(one: dict[str, Any], idx_dir: Path, folder: Path) -> None:
    """16 x 16 PNGs in two folders, a and b: the last ones of each, by name, are the validation images."""
    pixels = gzip.decompress((idx_dir / "train-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((idx_dir / "train-labels-idx1-ubyte.gz").read_bytes())
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)
    classes = np.frombuffer(labels, np.uint8, offset=8)
    each = sum(one["images"]) // 2
    draw = np.random.default_rng(sum(map(ord, one["name"])))
    for name in "ab":
        (folder / name).mkdir(parents=True)
    for place, name in enumerate("ab"):
        rows = draw.permutation(np.flatnonzero(classes == one["pair"][place]))[:each]
        wrong = draw.random(each) < one["wrong"]
        for number, row in enumerate(rows):
            small = Image.fromarray(images[row]).resize((16, 16), Image.Resampling.BILINEAR).convert("RGB")
            small.save(folder / ("ab"[place ^ wrong[number]]) / f"{number:05}{name}.png")


def plan_of(one: dict[str, Any], data: Path, output: Path, seeds: int) -> tuple[Any, Any]:
    """What the trials of a grid share, and its plan."""
    from orchestrator.data.backbone import find_networks
    from orchestrator.data.indexing import build_index
    from orchestrator.plans.forecast import Counts
    from orchestrator.plans.points import make_plan
    from orchestrator.runs.context import WorkerContext
    from orchestrator.runs.folder import Run
    from orchestrator.spec.reading import load_spec
    from orchestrator.store import open_store

    train, validate = one["images"]
    tree = {
        "name": one["name"].replace(" ", "-").replace(",", ""),
        "data": {"uri": str(data), "image_size": 16, "validation_split": validate / (train + validate)},
        "train": {"epochs": one["epochs"], "checkpoint_every_s": 1e6},
        "grid": one["axes"],
        "seeds": list(range(seeds)),
    }
    overrides = [f"{name}={json.dumps(value)}" for name, value in one["spec"].items()]
    spec = load_spec(json.dumps(tree), overrides)
    images = open_store(spec.data.uri)
    index = build_index(images, spec.data)
    networks, weights = find_networks(spec)
    counts = Counts(int((~index.validates()).sum()), int(index.validates().sum()), index.packed)
    plan = make_plan(spec, counts, index.digest, networks)
    run = Run(open_store(str(output), create=True))
    return WorkerContext(spec, index, images, run, networks=networks, weights=weights), plan


_planned: dict[int, tuple[Any, Any]] = {}


def record(job: tuple[int, int, int, str, str, int, float]) -> float:
    """Train one configuration with one seed, and write what it said of the validation images. Returns its seconds."""
    number, configuration, seed, folder, dst, seeds, until = job
    target = Path(dst) / f"{number}-{configuration}-{seed}.npz"
    if target.exists() or time.time() > until:
        return 0.0
    began = time.perf_counter()
    from orchestrator.train import trial as trials
    from orchestrator.train.loop import Loop

    trials.use_device(1)
    one = GRIDS[number]
    if number not in _planned:
        _planned[number] = plan_of(one, Path(folder) / str(number), Path(folder) / f"run-{number}", seeds)
    context, plan = _planned[number]
    values = configurations(one)[configuration]
    trial = next(t for t in plan.trials if t.seed == seed and dict(t.values) == values)
    said, validate = [], Loop.validate

    def listen(self: Any, *args: Any) -> Any:
        validated = validate(self, *args)
        said.append(validated.outputs[:, 0])
        return validated

    Loop.validate = listen
    try:
        result = trials.run_trial(trial, context)
    finally:
        Loop.validate = validate
    labels = context.index.labels[context.index.validates()]
    if result.status == "ok":
        p = np.clip(np.where(labels == 1, said, 1 - np.array(said)), 1e-7, 1)
        right = (np.array(said) > 0.5) == (labels > 0.5)
        assert np.allclose(right.mean(1), [e.metrics["val_accuracy"] for e in result.history])
    else:  # it diverged: never right
        right, p = np.zeros((one["epochs"], len(labels)), bool), np.full((one["epochs"], len(labels)), np.nan)
    loss = np.stack([-np.log(p[:, half::2]).mean(1) for half in (0, 1)], 1).astype(np.float32)
    np.savez(target.with_suffix(".half.npz"), right=np.packbits(right, axis=1), images=right.shape[1], loss=loss)
    target.with_suffix(".half.npz").rename(target)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dst", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--idx-dir", type=Path, default=DEBIAN_IDX_DIR)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of grids")
    args = parser.parse_args()
    until = time.time() + 60 * args.minutes
    args.dst.mkdir(parents=True, exist_ok=True)
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="", ORCHESTRATOR_CACHE_DIR=tempfile.mkdtemp())
    with tempfile.TemporaryDirectory() as folder:
        chosen = args.only or range(len(GRIDS))
        for number in chosen:
            write_images(GRIDS[number], args.idx_dir, Path(folder) / str(number))
        jobs = [
            (number, configuration, seed, folder, str(args.dst), args.seeds, until)
            for seed in range(args.seeds)
            for number in chosen
            for configuration in range(len(configurations(GRIDS[number])))
        ]
        began, spent = time.perf_counter(), 0.0
        workers = multiprocessing.get_context("spawn").Pool(os.cpu_count(), maxtasksperchild=400)
        with workers as pool:
            for done, took in enumerate(pool.imap_unordered(record, jobs, chunksize=4), 1):
                spent += took
                if done % 100 == 0:
                    print(f"{done}/{len(jobs)} {spent:.0f} core-s {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
