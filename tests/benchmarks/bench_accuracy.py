"""Accuracies of the same points by us and by Ray Tune over the notebook's loop: bench_accuracy.py FOLDER.

FOLDER: the 8005 JPEGs of make_jpegs.py. Three seeds of each point; half an hour, and other work does no harm.
"""

import itertools
import statistics
import sys
from pathlib import Path

import pandas as pd
from bench_grid import GRID, ours, peer

SEEDS = [0, 1, 2]
AXES = ("batch_size", "dropout", "l2", "epochs")


def main() -> None:
    folder = Path(sys.argv[1])
    axes = {name: GRID[name] for name in AXES}
    points = list(itertools.product(*axes.values()))
    _, scores = peer("ray-tune", folder, {**axes, "seed": SEEDS})
    theirs = {point: scores[3 * i : 3 * i + 3] for i, point in enumerate(points)}
    spread = statistics.mean(statistics.variance(scores) for scores in theirs.values()) ** 0.5
    print(f"standard deviation of Ray Tune's seeds, over all points: {spread:.4f}")
    for precision in ("float32", "mixed_bfloat16"):
        # the notebook's loop changes its validation images like those that train
        rows = pd.DataFrame(ours(folder, GRID, precision, "augment.validation=true", seeds=SEEDS)[1])
        print(f"\n{precision:<30}{'this':>22}{'Ray Tune':>22}{'means apart':>14}")
        apart, inside = [], 0
        for point in points:
            mine = rows[(rows[list(AXES)] == list(point)).all(axis=1)].sort_values("seed").val_accuracy.tolist()
            apart.append(statistics.mean(mine) - statistics.mean(theirs[point]))
            inside += sum(abs(score - statistics.mean(theirs[point])) <= 2 * spread for score in mine)
            texts = [f"{min(each):.3f} to {max(each):.3f}" for each in (mine, theirs[point])]
            name = " ".join(f"{value:g}" for value in point)
            print(f"{name:<30}{texts[0]:>22}{texts[1]:>22}{apart[-1]:>+14.4f}", flush=True)
        mean = statistics.mean(apart)
        print(f"{inside} of {3 * len(points)} within two deviations of Ray Tune's mean; on average {mean:+.4f}")


if __name__ == "__main__":
    main()
