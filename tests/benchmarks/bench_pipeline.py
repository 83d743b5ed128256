"""Images a second of the pipeline alone: python tests/benchmarks/bench_pipeline.py [--threads 1].

8000 random images of 64 x 64 in a memory-mapped file, as a node's cache holds them; batches of 10. What the pipeline
takes is lost to training, which gets through 400 to 1,200 such images a second on one core.
"""

import argparse
import tempfile
import time

import numpy as np
import tensorflow as tf

from orchestrator.data.pipeline import Source, shared_tensor, training_batches
from orchestrator.spec.presets import PRESETS
from orchestrator.spec.sections import Augment, Data

IMAGES, SIDE, BATCH = 8000, 64, 10
AUGMENTS = {
    "none": Augment(),
    "rotation 20": Augment(rotation_deg=20),
    "rotation 20, shifts 0.2, flip": Augment(rotation_deg=20, width_shift=0.2, height_shift=0.2, horizontal_flip=True),
    "preset strong": Augment(**PRESETS["strong"]),
    "preset strong and mixup 0.2": Augment(**PRESETS["strong"], mixup=0.2),
}


@tf.function
def pull(batches: tf.data.Iterator, steps: tf.Tensor) -> tf.Tensor:
    """Take `steps` batches as a trial does, inside a graph, and look at one pixel of each."""
    total = 0.0
    for _ in tf.range(steps):
        images, *_ = next(batches)
        total += images[0, 0, 0, 0]
    return total


def images_per_s(images: tf.Tensor, augment: Augment, threads: int, epochs: int) -> float:
    steps = IMAGES // BATCH
    source = Source(images, tf.zeros([IMAGES, 1]), Data(uri="none", image_size=SIDE), augment, 0, threads)
    batches = iter(training_batches(source, np.arange(IMAGES), BATCH, 0, epochs + 1))
    best = 0.0
    pull(batches, tf.constant(steps))
    for _ in range(epochs):
        started = time.perf_counter()
        pull(batches, tf.constant(steps))
        best = max(best, IMAGES / (time.perf_counter() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="of the pipeline (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="the fastest counts (default: %(default)s)")
    args = parser.parse_args()
    tf.config.set_visible_devices([], "GPU")
    with tempfile.TemporaryFile() as file:
        cache = np.memmap(file, np.uint8, "w+", shape=(IMAGES, SIDE, SIDE, 3))
        cache[:] = np.random.default_rng(0).integers(0, 256, cache.shape, np.uint8)
        images = shared_tensor(cache)
        print(f"{'augmentation':<32}{'images/s':>10}")
        for name, augment in AUGMENTS.items():
            print(f"{name:<32}{images_per_s(images, augment, args.threads, args.epochs):>10,.0f}")


if __name__ == "__main__":
    main()
