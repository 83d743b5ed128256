"""How long until a winner is named, and what it is worth: python tests/benchmarks/bench_winner.py FOLDER.

FOLDER: two folders of JPEGs, such as make_jpegs.py makes. 36 trials of 20 epochs at 32 x 32 pixels, one after another
on the same machine: ours in full, raced, and raced with more seeds; Ray Tune with ASHA over the notebook's loop;
KerasTuner's Hyperband over tf.data. A winner is worth the mean score that its configuration has in a full grid of
other seeds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_grid import AUGMENT

GRID = {"batch_size": [5, 10, 16, 32], "dropout": [0.0, 0.25, 0.5], "l2": [0.0, 0.001, 0.01]}
EPOCHS, SIDE = 20, 32
TRUTH_SEEDS = [101, 102, 103]


def ours(folder: Path, *more: str) -> tuple[float, list[dict], dict]:
    """Wall seconds from an empty cache, the board, and race.json."""
    with tempfile.TemporaryDirectory() as scratch:
        sets = [f"grid={json.dumps(GRID)}", AUGMENT, f"data.image_size={SIDE}", "data.resize=nearest", "name=a"]
        sets += [f"train.epochs={EPOCHS}", *more]
        args = ["--data", str(folder), "--output", scratch, "--json", *(part for s in sets for part in ("--set", s))]
        env = {**os.environ, "ORCHESTRATOR_CACHE_DIR": f"{scratch}/cache"}
        began = time.perf_counter()
        command = [sys.executable, "-m", "orchestrator.grid", *args]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        took_s = time.perf_counter() - began
        race = Path(scratch, "a", "race.json")
        return took_s, json.loads(done.stdout)["rows"], json.loads(race.read_text()) if race.exists() else {}


def peer(name: str, folder: Path) -> tuple[float, dict]:
    """Wall seconds of a whole process, and the configuration that it names."""
    script, grid = Path(__file__).with_name("peers.py"), GRID | {"epochs": [EPOCHS]}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(script), name, str(folder), json.dumps(grid)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PEER_SIDE": str(SIDE)},
    )
    return time.perf_counter() - began, json.loads(done.stdout.strip().splitlines()[-1])["winner"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", nargs="*", default=["ray-asha", "hyperband"])
    args = parser.parse_args()
    named: list[tuple[str, float, dict, str]] = []
    for label, sets in (
        ("ours in full", ["race=false"]),
        ("ours raced", ["race=true"]),
        ("ours raced, up to 5 seeds", ["race={contenders: 4}", "seeds=[0, 1, 2, 3, 4]"]),
    ):
        took_s, board, race = ours(args.folder, *sets)
        granted = sum(race["granted"].values()) if race else EPOCHS * len(board)
        named.append((label, took_s, board[0], f"{granted} epochs"))
        print(label, round(took_s), granted, flush=True)
    for name in args.peers:
        took_s, winner = peer(name, args.folder)
        named.append((name, took_s, winner, ""))
        print(name, round(took_s), winner, flush=True)
    took_s, board, _ = ours(args.folder, f"seeds={TRUTH_SEEDS}")
    print(f"truth: {len(board)} trials in {took_s:.0f} s")
    worth: dict[tuple, list[float]] = {}
    for row in board:
        worth.setdefault(tuple(row[axis] for axis in GRID), []).append(row["score"])
    means = {values: sum(scores) / len(scores) for values, scores in worth.items()}
    for label, seconds, winner, note in named:
        mean = means[tuple(winner[axis] for axis in GRID)]
        values = " ".join(f"{axis}={winner[axis]}" for axis in GRID)
        regret = max(means.values()) - mean
        name = f"{label:28} {seconds:6.0f} s x{seconds / named[1][1]:<5.1f}"
        print(f"{name}  worth {mean:.4f}, {regret:.4f} below the best  {values}  {note}")


if __name__ == "__main__":
    main()
