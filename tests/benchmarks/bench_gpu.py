"""What one GPU gives: python tests/benchmarks/bench_gpu.py [--backbone FILE].

One trial of each kind: its step and its epoch, with the images on the GPU and brought there by tf.data, and its memory
against the forecast; how fast features are made; and 1 to 8 trials on one GPU at once. On generated images, in worker
processes as runs have them. Where there is no GPU, the same on the CPU with fewer images, as far as that goes. Minutes.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]

import numpy as np
from bench_backbone import image_size
from bench_trial import work_in
from PIL import Image

from orchestrator import machine
from orchestrator.data.backbone import find_networks
from orchestrator.errors import BadInput
from orchestrator.plans.forecast import MOST_PER_GPU, Counts, gpu_memory_mb, trials_per_gpu
from orchestrator.plans.trials import Trial
from orchestrator.runs.context import Reporter, WorkerContext
from orchestrator.runs.folder import Run
from orchestrator.spec.axes import resolve
from orchestrator.store import open_store
from orchestrator.terminal import without_stderr

BACKBONE = Path(__file__).parents[2] / "orchestrator/data/sample/backbones/fashion.keras"
IMAGES, IMAGES_ON_CPU = 10_000, 1100
EPOCHS = 4  # the first traces and compiles, and is left out
KINDS = {
    "small_cnn, batch 32": ["grid={batch_size: [32]}"],
    "small_cnn, batch 128": ["grid={batch_size: [128]}"],
    "small_cnn, batch 128, mixed_bfloat16": ["grid={batch_size: [128]}", "train.precision=mixed_bfloat16"],
    "head, batch 64": ["grid={batch_size: [64]}"],
}
_all_ready: Any = None  # in a worker: what it waits at until the others can train too


@dataclass(frozen=True)
class Measured:
    """One trial, in a process of its own: medians over its epochs but the first.

    Attributes:
        used_mb: Memory of the whole GPU in use when the trial was over; None without one.
        features_per_s: Images of which features were made, a second; None where none were.
    """

    device: str
    step_s: float
    epoch_s: float
    images_per_s: float
    used_mb: float | None
    features_per_s: float | None


def gpu_mb(what: str) -> float | None:
    """Memory `total` or `used` of the GPU that is used, in MB; None where there is none, or it does not say."""
    query = ["nvidia-smi", f"--query-gpu=memory.{what}", "--format=csv,noheader,nounits"]
    query += ["--id=" + os.environ["CUDA_VISIBLE_DEVICES"]]
    try:
        return float(subprocess.run(query, capture_output=True, check=True, text=True).stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def make_images(folder: Path, count: int) -> None:
    """Two classes of smooth noise as JPEGs of 64 x 64."""
    draw = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"class{i % 2}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(path)


def start_worker(limit_mb: float | None, barrier: Any) -> None:
    global _all_ready
    _all_ready = barrier
    with without_stderr():
        from orchestrator.train.device import use_device
    use_device(1, limit_mb)


def train(work: WorkerContext, trial: Trial, output: str, resident: bool, on_gpu: bool) -> Measured:
    """Train it into a run folder of its own, together with the trials of the other workers."""
    from orchestrator.train import device
    from orchestrator.train.trial import run_trial

    if on_gpu:
        device.check_gpu()
    if not resident:
        device._RESIDENT_BYTES = 0
    made: list[tuple[float, int]] = []
    reporter = Reporter(
        preparing=lambda what, done, images, new: made.append((time.perf_counter(), new)),
        ready=lambda unreadable, epochs_done: _all_ready.wait(300) and None,
    )
    own = replace(work, run=Run(open_store(output, create=True)))
    result = run_trial(trial, own, reporter)
    if result is None or result.status != "ok":
        raise BadInput(f"every trial must end well, got: {result and result.error}")
    epochs = result.history[1:]
    train_s = statistics.median(epoch.train_s for epoch in epochs)
    return Measured(
        device=result.device or "cpu",
        step_s=train_s / (result.steps_per_epoch or 1),
        epoch_s=train_s + statistics.median(epoch.validate_s for epoch in epochs),
        images_per_s=statistics.median(epoch.images_per_s for epoch in epochs),
        used_mb=gpu_mb("used"),
        features_per_s=(made[-1][1] - made[0][1]) / (made[-1][0] - made[0][0]) if len(made) > 1 else None,
    )


class Bench:
    """The data, and what is measured on them."""

    def __init__(self, scratch: str, backbone: str, total_mb: float | None) -> None:
        self._scratch, self._total_mb, self._runs = scratch, total_mb, 0
        self._backbone, self._images = os.path.abspath(backbone), f"{scratch}/images"
        make_images(Path(self._images), IMAGES if total_mb else IMAGES_ON_CPU)

    def work(self, kind: str) -> tuple[WorkerContext, Trial, float]:
        """What a trial of this kind is trained on, the trial, and the GPU memory that is forecast for it, in MB."""
        sets = [*KINDS[kind], f"train.epochs={EPOCHS}", "augment={rotation_deg: 20, horizontal_flip: true}"]
        if kind.startswith("head"):
            sets += [f"backbone={self._backbone}", f"data.image_size={image_size(self._backbone)}", "augment={}"]
        work, (trial,) = work_in(f"{self._scratch}/plan", self._images, *sets)
        networks, weights = find_networks(work.spec)
        index = work.index
        counts = Counts(int(index.trains().sum()), int(index.validates().sum()))
        forecast_mb = gpu_memory_mb(resolve(work.spec, trial.values), counts)
        return replace(work, networks=networks, weights=weights), trial, forecast_mb

    def at_once(self, kind: str, trials: int, resident: bool = True) -> list[Measured]:
        """That many trials of this kind, each in a fresh process, sharing the GPU as in a run."""
        work, trial, _ = self.work(kind)
        spawn = get_context("spawn")
        limit_mb = 0.9 * self._total_mb / trials if self._total_mb and trials > 1 else None
        barrier = spawn.Barrier(trials)
        with ProcessPoolExecutor(trials, spawn, start_worker, (limit_mb, barrier)) as pool:
            asked = []
            for _ in range(trials):
                self._runs += 1
                output = f"{self._scratch}/{self._runs}"
                asked.append(pool.submit(train, work, trial, output, resident, self._total_mb is not None))
            return [each.result() for each in asked]


def report_alone(bench: Bench, total_mb: float | None) -> dict[str, Measured]:
    """One trial of each kind."""
    before_mb = gpu_mb("used") or 0.0
    print(f"{'one trial':<38}{'step':>9}{'epoch':>9}{'images/s':>10}{'piped':>10}{'GPU MB':>9}{'forecast':>10}")
    found = {}
    for kind in KINDS:
        forecast_mb = bench.work(kind)[2]
        (mine,) = bench.at_once(kind, 1)
        piped = f"{bench.at_once(kind, 1, resident=False)[0].images_per_s:,.0f}" if total_mb else "-"
        if mine.used_mb is not None:
            mine = replace(mine, used_mb=mine.used_mb - before_mb)
        used, fit = ("-", "") if mine.used_mb is None else (f"{mine.used_mb:.0f}", "")
        if total_mb and mine.used_mb:
            fit = f"  {trials_per_gpu(total_mb, forecast_mb)} share it, {int(0.9 * total_mb // mine.used_mb)} would fit"
        print(
            f"{kind:<38}{mine.step_s * 1000:>6.2f} ms{mine.epoch_s * 1000:>6.0f} ms{mine.images_per_s:>10,.0f}"
            f"{piped:>10}{used:>9}{forecast_mb:>10.0f}{fit}",
            flush=True,
        )
        if mine.features_per_s:
            print(f"{'  its features made':<56}{mine.features_per_s:>10,.0f}")
        found[kind] = mine
    return found


def report_at_once(bench: Bench, kinds: tuple[str, ...], most: int) -> dict[str, dict[int, float]]:
    """Images a second in all, of as many trials at once as there may be."""
    print(f"\n{'trials at once':<16}" + "".join(f"{kind:>24}" for kind in kinds) + "   images/s in all")
    found: dict[str, dict[int, float]] = {kind: {} for kind in kinds}
    for trials in sorted({1, 2, 4, most} - {n for n in (2, 4) if n > most}):
        for kind in kinds:
            found[kind][trials] = sum(each.images_per_s for each in bench.at_once(kind, trials))
        print(f"{trials:<16}" + "".join(f"{found[kind][trials]:>24,.0f}" for kind in kinds), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default=str(BACKBONE), help="a .keras file (default: that of the package)")
    args = parser.parse_args()
    total_mb = gpu_mb("total")
    if total_mb is None:
        print(f"no GPU: figures of the CPU, with {IMAGES_ON_CPU:,} images; memory is not measured", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["ORCHESTRATOR_CACHE_DIR"] = f"{scratch}/cache"
        bench = Bench(scratch, args.backbone, total_mb)
        alone = report_alone(bench, total_mb)
        kinds = ("small_cnn, batch 32", "head, batch 64")
        most = min(MOST_PER_GPU, machine.cpus())  # as runs do: a CPU for each
        at_once = report_at_once(bench, kinds, most)
        forecast_mb = bench.work(kinds[0])[2]
    if total_mb is None:
        print("\nnothing for the README: it takes the figures of a GPU")
        return
    cnn = alone[kinds[0]]
    print(
        f"\nfor the README, under Tested up to:\n| GPUs | one {cnn.device}: small_cnn at {cnn.images_per_s:,.0f} "
        f"images/s in one trial, {at_once[kinds[0]][most]:,.0f} in {most} at once, heads at "
        f"{at_once[kinds[1]][most]:,.0f}; a trial takes {cnn.used_mb or math.nan:.0f} MB, forecast {forecast_mb:.0f} "
        f"(`make bench-gpu`) |"
    )


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        sys.exit(f"bench_gpu: {error}")
