"""What one training step is made of, and what else was tried: python tests/benchmarks/bench_step.py.

Images a second of a bare loop in the graph on one constant batch of 64 x 64, one thread: as trials have it, and with
one thing changed. Each change is timed between two runs of what is there, and compared with their mean. 3 minutes.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from bench_trial import loop_images_per_s, start_worker
from peers import network as notebooks_network

SIZES = (10, 32)
KINDS = ("Keras' own Adam", "ReLU before the pool", "all of the step in XLA", "mixed_bfloat16")


def images_per_s(kind: str, size: int) -> float:
    """Of the step as trials have it, but for `kind`."""
    import keras

    from orchestrator.train.model import small_cnn
    from orchestrator.train.optimizers import FusedAdam

    keras.config.set_dtype_policy("mixed_bfloat16" if kind == "mixed_bfloat16" else "float32")
    network = (
        notebooks_network(dropout=0.5, l2=0.01)
        if kind == "ReLU before the pool"
        else small_cnn((64, 64, 3), 2, dropout=0.5, l2=0.01)
    )
    keras.config.set_dtype_policy("float32")
    optimizer = keras.optimizers.Adam(0.001) if kind == "Keras' own Adam" else FusedAdam(0.001)
    return loop_images_per_s(network, optimizer, size, jit_compile=kind == "all of the step in XLA")


def main() -> None:
    spawn = multiprocessing.get_context("spawn")
    print(f"{'images a second, one thread':<32}{'as it is':>10}{'changed':>10}{'ratio':>8}", flush=True)
    for size in SIZES:
        for kind in KINDS:
            with ProcessPoolExecutor(1, mp_context=spawn, initializer=start_worker) as pool:
                before, changed, after = (
                    pool.submit(images_per_s, each, size).result() for each in ("as it is", kind, "as it is")
                )
            mean = (before + after) / 2
            print(f"{f'batch {size}, {kind}':<32}{mean:>10.0f}{changed:>10.0f}{changed / mean:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
