"""What bfloat16 gains, and what is left of a step: python tests/benchmarks/bench_precision.py.

Three tables, from one process of one thread, on constant batches of 64 x 64: ms of a training step of each
network and of a head in float32 and in bfloat16; the kernels of small_cnn's step; and validation by the size of its
batches. 2 minutes.
"""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from bench_trial import start_worker

from orchestrator.spec.axes import resolve
from orchestrator.spec.own_models import OWN_MODELS
from orchestrator.spec.reading import load_spec

PRECISIONS = ("float32", "mixed_bfloat16")
HEAD = 1024  # features
SIZES = (16, 32, 64, 128)


def built(model: str, precision: str) -> Any:
    """The settings of a trial, and its model."""
    from orchestrator.train.model import build

    of = "backbone: MobileNetV2" if model == "head" else f"model: {model}"
    spec = load_spec(f"{{name: a, data: {{uri: b}}, {of}, train: {{precision: {precision}}}, grid: {{epochs: [1]}}}}")
    settings = resolve(spec, {})
    return settings, build(settings, (HEAD,) if model == "head" else (64, 64, 3), 2)


def steps_of(model: str, precision: str, size: int, validates: bool = False) -> Callable[[int], None]:
    """Takes so many steps in the graph, on one batch."""
    import tensorflow as tf

    from orchestrator.train.optimizers import make_optimizer
    from orchestrator.train.steps import judging, no_sums, training_step

    settings, network = built(model, precision)
    optimizer, sums = make_optimizer(settings.train), tf.Variable(no_sums())
    optimizer.build(network.trainable_variables)
    train, judge = training_step(network, optimizer, sums), judging(network)
    images, labels = tf.random.uniform((size, *network.input_shape[1:])), tf.zeros((size, 1))

    @tf.function(jit_compile=False)
    def steps(count: tf.Tensor) -> None:
        for _ in tf.range(count):
            if validates:
                sums.assign_add(judge(images, labels)[1])
            else:
                train(images, labels)

    def run(count: int) -> None:
        steps(tf.constant(count))

    run(2)
    return run


def ms_of(run: Callable[[int], None]) -> float:
    """Of one step: the least of four looks of a quarter of a second."""
    began = time.perf_counter()
    run(2)
    count = max(2, round(0.5 / (time.perf_counter() - began)))
    looks = []
    for _ in range(4):
        began = time.perf_counter()
        run(count)
        looks.append((time.perf_counter() - began) / count)
    return min(looks) * 1e3


def kernels_ms(run: Callable[[int], None], count: int = 40) -> Counter[str]:
    """Milliseconds of a step, by what TensorFlow calls the kernel and what it works for."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    run(count)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            run(count)
        space = xplane_pb2.XSpace()
        space.ParseFromString(next(Path(folder).rglob("*.xplane.pb")).read_bytes())
    found: Counter[str] = Counter()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                name, colon, kernel = plane.event_metadata[event.metadata_id].name.rpartition(":")
                if colon and name.startswith("while/"):
                    found[f"{kernel} ({name.partition('functional')[2].partition('/')[2].partition('/')[0]})"] += (
                        event.duration_ps / 1e9 / count
                    )
    return found


def main() -> None:
    start_worker()
    print(f"{'ms of a step of 32 images':<28}{'float32':>10}{'bfloat16':>10}{'times as fast':>15}", flush=True)
    for model in (*OWN_MODELS, "head"):
        wide, half = (ms_of(steps_of(model, precision, 32)) for precision in PRECISIONS)
        print(f"{model:<28}{wide:>10.2f}{half:>10.2f}{wide / half:>15.2f}", flush=True)
    for size in (10, 32):
        found = kernels_ms(steps_of("small_cnn", "mixed_bfloat16", size))
        print(f"\nsmall_cnn in bfloat16, batch {size}: {found.total():.2f} ms in kernels")
        for name, ms in found.most_common(20):
            print(f"    {name:<64}{ms:>6.2f} ms{ms / found.total():>6.0%}", flush=True)
    print(f"\n{'validated images a second':<28}" + "".join(f"{f'batch {size}':>12}" for size in SIZES))
    for model in ("small_cnn", "small_vgg", "mlp"):
        for precision in PRECISIONS:
            rates = [size / ms_of(steps_of(model, precision, size, validates=True)) * 1e3 for size in SIZES]
            print(f"{f'{model}, {precision}':<28}" + "".join(f"{rate:>12.0f}" for rate in rates), flush=True)


if __name__ == "__main__":
    main()
