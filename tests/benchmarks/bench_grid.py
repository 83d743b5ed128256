"""The same grid by us and by what people run today: python tests/benchmarks/bench_grid.py FOLDER [--full].

FOLDER: the 8005 JPEGs of make_jpegs.py. One after another on the same machine; prints a table of wall times, their
ratios to ours, and the validation accuracies. --full trains epochs 5, 10, 20 instead of 1, 2, 4, and takes hours.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

GRID = {"batch_size": [10, 32], "epochs": [1, 2, 4], "dropout": [0.0, 0.5], "l2": [0.01]}
AUGMENT = "augment={rotation_deg: 20, width_shift: 0.2, height_shift: 0.2, horizontal_flip: true}"
PEERS = {
    "ray-tune": "Ray Tune over the notebook's loop",
    "keras-tuner": "KerasTuner over tf.data",
    "notebook": "the notebook's loop",
}


def peer(name: str, folder: Path, grid: dict) -> tuple[float, list[float]]:
    """Wall seconds of a whole process, and its validation accuracies."""
    command = [sys.executable, str(Path(__file__).with_name("peers.py")), name, str(folder), json.dumps(grid)]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - began, json.loads(done.stdout.strip().splitlines()[-1])["val_accuracy"]


def ours(folder: Path, grid: dict, precision: str, *more: str, seeds: Sequence[int] = (0,)) -> tuple[float, list[dict]]:
    """Wall seconds of this program from an empty cache, and its board. more: other settings, PATH=VALUE."""
    with tempfile.TemporaryDirectory() as scratch:
        sets = [
            f"grid={json.dumps(grid)}",
            AUGMENT,
            "data.image_size=64",
            "data.resize=nearest",
            f"train.precision={precision}",
            f"seeds={json.dumps(list(seeds))}",
            *more,
        ]
        args = ["--data", str(folder), "--output", scratch, "--json", *(part for s in sets for part in ("--set", s))]
        env = {**os.environ, "ORCHESTRATOR_CACHE_DIR": f"{scratch}/cache"}
        began = time.perf_counter()
        command = [sys.executable, "-m", "orchestrator.grid", *args]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        return time.perf_counter() - began, json.loads(done.stdout)["rows"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    args = parser.parse_args()
    grid = GRID | ({"epochs": [5, 10, 20]} if args.full else {})
    rows = []
    for precision in ("float32", "mixed_bfloat16"):
        wall_s, board = ours(args.folder, grid, precision)
        rows.append((f"this, {precision}", wall_s, [row["val_accuracy"] for row in board]))
        print(f"{rows[-1][0]:<36}{rows[-1][1]:>8.0f} s", flush=True)
    for name in args.peers:
        rows.append((PEERS[name], *peer(name, args.folder, grid)))
        print(f"{rows[-1][0]:<36}{rows[-1][1]:>8.0f} s", flush=True)
    print(f"\ngrid {json.dumps(grid)}, {os.cpu_count()} cores")
    print(f"{'':<36}{'wall':>8}{'float32':>12}{'bfloat16':>12}   val_accuracy of the points, least to most")
    for name, wall_s, scores in rows:
        against = "".join(f"{wall_s / mine[1]:>11.1f}x" for mine in rows[:2])
        print(f"{name:<36}{wall_s:>7.0f}s{against}   {min(scores):.3f} to {max(scores):.3f}")


if __name__ == "__main__":
    main()
