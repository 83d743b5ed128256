"""How often a verdict over folds is wrong: python tests/benchmarks/bench_folds.py [--replays 400]

Each replay draws images of those that come with the package, splits them into folds, and trains logistic regressions by
gradient descent: first several that are the same but for the order of their batches, so that none is better and "ahead"
is wrong each time; then one of them with labels of which a part is turned over in training, so that it is worse. The
verdict is that of the board. An interval is held to be right where it holds the accuracy on all other images.
"""

import argparse
import io
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from orchestrator.board.comparison import compare
from orchestrator.board.estimates import configurations

IMAGES, STEPS, BATCH = 300, 120, 16


def load() -> tuple[np.ndarray, np.ndarray]:
    """(images, pixels) from 0 to 1 with a last column of ones, and (images,) 0 or 1."""
    table = pq.read_table(files("orchestrator.data.sample") / "shirts" / "train.parquet").to_pydict()
    pixels = [
        np.asarray(Image.open(io.BytesIO(each["bytes"])).convert("L").resize((14, 14))) for each in table["image"]
    ]
    x = np.stack(pixels).reshape(len(pixels), -1) / 255
    return np.hstack([x - x.mean(), np.ones((len(x), 1))]), np.array(table["label"])


def train(x: np.ndarray, y: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Weights of a logistic regression."""
    weights = np.zeros(x.shape[1])
    for _ in range(STEPS):
        rows = draw.integers(len(x), size=BATCH)
        weights += 0.3 * x[rows].T @ (y[rows] - 1 / (1 + np.exp(-x[rows] @ weights))) / BATCH
    return weights


def replay(
    x: np.ndarray, y: np.ndarray, names: list[str], folds: int, draw: np.random.Generator, turned: float
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The rows of a board, and what each configuration reaches on the images that were not drawn.

    turned: the part of the labels that are turned over for the last of the configurations.
    """
    chosen = draw.permutation(len(x))
    own, others = chosen[:IMAGES], chosen[IMAGES:]
    part = np.arange(IMAGES) % folds
    rows, truth = [], {}
    for name in names:
        labels = y.copy()
        if name == names[-1]:
            flipped = draw.choice(len(y), round(turned * len(y)), replace=False)
            labels[flipped] = 1 - labels[flipped]
        reached = []
        for fold in range(folds):
            weights = train(x[own[part != fold]], labels[own[part != fold]], draw)
            value = float(((x[own[part == fold]] @ weights > 0) == y[own[part == fold]]).mean())
            reached.append(float(((x[others] @ weights > 0) == y[others]).mean()))
            row = {"name": name, "seed": 0, "fold": fold, "trial_id": f"{name}{fold}", "status": "ok", "train_s": 1.0}
            rows.append(row | {"val_accuracy": value, "score": value, "epochs_trained": 1})
        truth[name] = float(np.mean(reached))
    return rows, truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replays", type=int, default=400)
    arguments = parser.parse_args()
    x, y = load()
    print(f"{arguments.replays:,} replays each, of {IMAGES} images\n")
    print("folds  configurations  last one's labels turned  said to be ahead  cost held  intervals that hold the truth")
    for folds, count, turned in ((5, 2, 0.0), (5, 6, 0.0), (10, 2, 0.0), (5, 2, 0.2), (5, 2, 0.35)):
        draw, ahead, held, costs, inside = np.random.default_rng(0), 0, 0, 0, []
        for _ in range(arguments.replays):
            rows, truth = replay(x, y, [f"c{i}" for i in range(count)], folds, draw, turned)
            ranked = configurations(rows, ["name"], "val_accuracy")
            found = compare(ranked, "val_accuracy")
            ahead += not any(each.may_be_best for each in found.each[1:])
            if found.costs is not None:
                costs += 1
                held += max(truth.values()) - truth[ranked[0].values["name"]] <= found.costs + 1e-12
            for each in ranked:
                inside.append(abs(each.score.mean - truth[each.values["name"]]) <= (each.score.half_width or 0.0))
        line = f"{folds:5}  {count:14}  {turned:24.0%}  {ahead / arguments.replays:16.1%}"
        print(f"{line}  {held / max(1, costs):9.1%}  {np.mean(inside):29.1%}")


if __name__ == "__main__":
    main()
