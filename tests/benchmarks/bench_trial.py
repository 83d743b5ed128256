"""What a trial costs beside its convolutions: python tests/benchmarks/bench_trial.py [FOLDER].

FOLDER: the 8005 JPEGs of make_jpegs.py. Two tables, from worker processes of one thread each: images a second of a
trial, input and augmentation included, against a bare loop in the graph over the same model, optimizer and one constant
batch, alone and with every core at it; and 200 small trials, one after another in one worker. Without FOLDER: only the
second one.
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

FASHION = Path(__file__).parents[2] / "orchestrator/data/sample/backbones/fashion.keras"
AUGMENT = "augment={rotation_deg: 20, width_shift: 0.2, height_shift: 0.2, horizontal_flip: true}"
MANY = (
    ("small_cnn", KeepModels.none),
    ("small_cnn, the best model kept", KeepModels.best),
    ("head on features", KeepModels.best, f"backbone={{name: {FASHION}}}"),
)
KINDS = ((10, "float32"), (32, "float32"), (10, "mixed_bfloat16"), (32, "mixed_bfloat16"))


def work_in(output: str, data: str, *overrides: str) -> tuple[WorkerContext, tuple[Trial, ...]]:
    """A run folder and its trials."""
    spec = load_spec(f"name: bench\ndata: {{uri: {data!r}}}\noutput: {output!r}", overrides)
    images = open_store(spec.data.uri)
    index = build_index(images, spec.data)
    counts = Counts(int((~index.validates()).sum()), int(index.validates().sum()))
    networks, weights = find_networks(spec)
    plan = make_plan(spec, counts, index.digest, networks)
    run = Run(open_store(f"{output}/{spec.name}", create=True))
    return WorkerContext(spec, index, images, run, networks=networks, weights=weights), plan.trials


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


def many_trials(work: WorkerContext, trials: Sequence[Trial]) -> list[tuple[float, float, float]]:
    """(seconds, those beside its steps, MB held after it) of each. Its steps take what those of its last epoch take."""
    from orchestrator.train.trial import run_trial

    costs = []
    for trial in trials:
        began = time.perf_counter()
        result = run_trial(trial, work)
        took_s = time.perf_counter() - began
        assert result.status == "ok", result.error
        last = result.history[-1]
        costs.append((took_s, took_s - trial.epochs * (last.train_s + last.validate_s), memory_mb()))
    return costs


def at_once(pool: ProcessPoolExecutor, count: int, work: Any, *args: Any) -> float:
    """Mean of what `count` workers give that do the same at the same time."""
    return statistics.mean(f.result() for f in [pool.submit(work, *(a(i) for a in args)) for i in range(count)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--trials", type=int, default=200)
    args = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["ORCHESTRATOR_CACHE_DIR"] = f"{scratch}/cache"
        if args.folder:
            print(f"{'images a second, one thread each':<34}{'bare':>8}{'trial':>8}{'ratio':>8}", flush=True)
        runs = iter(range(10**6))
        for at_a_time in sorted({1, os.cpu_count() or 1}) if args.folder else ():
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
        what = f"{args.trials} trials of 2 epochs, in one worker"
        print(f"\n{what:<42}{'first':>9}{'then':>9}{'beside steps':>14}{'MB after 10':>13}{'all':>7}")
        dropouts = [round(0.1 + 0.8 * i / args.trials, 4) for i in range(args.trials)]
        for name, keep, *own in MANY:
            grid = f"grid={{batch_size: [64], epochs: [2], dropout: {dropouts}}}"
            work, trials = work_in(f"{scratch}/{name}", "sample://shirts", "data.image_size=28", grid, *own)
            with ProcessPoolExecutor(1, mp_context=spawn, initializer=start_worker) as pool:
                costs = pool.submit(many_trials, replace(work, keep=keep), trials).result()
            then, beside = (statistics.median(cost[i] for cost in costs[1:]) for i in range(2))
            seconds = f"{costs[0][0]:>7.2f} s{then:>7.3f} s{beside:>12.3f} s"
            print(f"{name:<42}{seconds}{costs[9][2]:>13.0f}{costs[-1][2]:>7.0f}", flush=True)


if __name__ == "__main__":
    main()
