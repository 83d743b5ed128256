"""What a trial costs beside its convolutions: python tests/benchmarks/bench_trial.py FOLDER.

FOLDER: the 8005 JPEGs of make_jpegs.py. Two tables, from worker processes of one thread each: images a second of a
trial, input and augmentation included, against a bare loop in the graph over the same model, optimizer and one constant
batch, alone and with every core at it; and 200 trials of one step, one after another in one worker, which keep the best
model as grids do, and which keep none.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from orchestrator.data.backbone import find_networks
from orchestrator.data.indexing import build_index
from orchestrator.plans.forecast import Counts
from orchestrator.plans.points import make_plan
from orchestrator.plans.trials import Trial
from orchestrator.runs.context import WorkerContext
from orchestrator.runs.folder import KeepModels, Run
from orchestrator.spec.axes import resolve
from orchestrator.spec.reading import load_spec
from orchestrator.store import open_store
from orchestrator.terminal import without_stderr

AUGMENT = "augment={rotation_deg: 20, width_shift: 0.2, height_shift: 0.2, horizontal_flip: true}"
KINDS = ((10, "float32"), (32, "float32"), (10, "mixed_bfloat16"), (32, "mixed_bfloat16"))


def work_in(output: str, data: str, *overrides: str) -> tuple[WorkerContext, tuple[Trial, ...]]:
    """A run folder and its trials."""
    spec = load_spec(f"name: bench\ndata: {{uri: {data!r}}}\noutput: {output!r}", overrides)
    images = open_store(spec.data.uri)
    index = build_index(images, spec.data)
    counts = Counts(int((~index.validates()).sum()), int(index.validates().sum()))
    plan = make_plan(spec, counts, index.digest, find_networks(spec)[0])
    return WorkerContext(spec, index, images, Run(open_store(f"{output}/{spec.name}", create=True))), plan.trials


def start_worker() -> None:
    with without_stderr():
        from orchestrator.train.device import use_device
    use_device(1)


def memory_mb() -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def trial_images_per_s(work: WorkerContext, trial: Trial, output: str) -> float:
    """Of the last epoch of a trial with a run folder of its own."""
    from orchestrator.train.trial import run_trial

    own = WorkerContext(work.spec, work.index, work.images, Run(open_store(output, create=True)))
    result = run_trial(trial, own)
    assert result.status == "ok", result.error
    return result.history[-1].images_per_s


def bare_images_per_s(work: WorkerContext, trial: Trial) -> float:
    """The same steps on one batch that never changes."""
    import keras

    from orchestrator.train.model import build
    from orchestrator.train.optimizers import make_optimizer

    settings = resolve(work.spec, trial.values)
    keras.config.set_dtype_policy(settings.train.precision)
    network = build(settings, (*settings.data.image_size, 3), 2)
    keras.config.set_dtype_policy("float32")
    return loop_images_per_s(network, make_optimizer(settings.train), settings.train.batch_size)


def loop_images_per_s(
    network: Any, optimizer: Any, size: int, seconds: float = 6.0, jit_compile: bool = False
) -> float:
    """Steps in the graph on one batch of `size` that never changes, for so many seconds."""
    import keras
    import tensorflow as tf

    optimizer.build(network.trainable_variables)
    images, labels = tf.random.uniform((size, *network.input_shape[1:])), tf.zeros((size, *network.output_shape[1:]))

    @tf.function(jit_compile=jit_compile)
    def steps(count: tf.Tensor) -> None:
        for _ in tf.range(count):
            with tf.GradientTape() as tape:
                p = tf.cast(network(images, training=True), tf.float32)
                loss = tf.reduce_mean(keras.losses.binary_crossentropy(labels, p)) + tf.add_n(network.losses)
            optimizer.apply(tape.gradient(loss, network.trainable_variables), network.trainable_variables)

    count, began = 0, time.perf_counter()
    steps(tf.constant(8))
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        steps(tf.constant(64))
        count += 64
    return count * size / (time.perf_counter() - began)


def many_trials(work: WorkerContext, trials: Sequence[Trial]) -> list[tuple[float, float]]:
    """(seconds, MB held after it) of each."""
    from orchestrator.train.trial import run_trial

    costs = []
    for trial in trials:
        began = time.perf_counter()
        result = run_trial(trial, work)
        assert result.status == "ok", result.error
        costs.append((time.perf_counter() - began, memory_mb()))
    return costs


def at_once(pool: ProcessPoolExecutor, count: int, work: Any, *args: Any) -> float:
    """Mean of what `count` workers give that do the same at the same time."""
    return statistics.mean(f.result() for f in [pool.submit(work, *(a(i) for a in args)) for i in range(count)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=200)
    args = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["ORCHESTRATOR_CACHE_DIR"] = f"{scratch}/cache"
        print(f"{'images a second, one thread each':<34}{'bare':>8}{'trial':>8}{'ratio':>8}", flush=True)
        runs = iter(range(10**6))
        for at_a_time in sorted({1, os.cpu_count() or 1}):
            for size, precision in KINDS:
                work, (trial,) = work_in(
                    scratch, str(args.folder), AUGMENT, f"train.precision={precision}",
                    f"grid={{batch_size: [{size}], epochs: [2], dropout: [0.5], l2: [0.01]}}",
                )  # fmt: skip
                same = (lambda _, work=work: work, lambda _, trial=trial: trial)
                with ProcessPoolExecutor(at_a_time, mp_context=spawn, initializer=start_worker) as pool:
                    before = at_once(pool, at_a_time, bare_images_per_s, *same)
                    mine = at_once(pool, at_a_time, trial_images_per_s, *same, lambda _: f"{scratch}/{next(runs)}")
                    after = at_once(pool, at_a_time, bare_images_per_s, *same)
                bare = (before + after) / 2
                name = f"{at_a_time} at once, batch {size}, {precision}"
                print(f"{name:<34}{bare:>8.0f}{mine:>8.0f}{mine / bare:>8.2f}", flush=True)
        for keep in (KeepModels.none, KeepModels.best):
            work, trials = work_in(
                f"{scratch}/{keep}", "sample://shirts", "data.image_size=28", f"seeds={list(range(args.trials))}",
                "grid={batch_size: [960], epochs: [1], dropout: [0.5]}",
            )  # fmt: skip
            with ProcessPoolExecutor(1, mp_context=spawn, initializer=start_worker) as pool:
                costs = pool.submit(many_trials, replace(work, keep=keep), trials).result()
            later = sorted(seconds for seconds, _ in costs[1:])
            print(
                f"{len(costs)} trials of one step in one worker, models kept: {keep}. The first {costs[0][0]:.2f} s, "
                f"then {later[0]:.2f} to {later[-1]:.2f} s, median {statistics.median(later):.2f} s; memory after 10, "
                f"half and all of them: {', '.join(f'{costs[i][1]:.0f}' for i in (9, len(costs) // 2 - 1, -1))} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
