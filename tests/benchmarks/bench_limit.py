"""How near a run comes to what the machine can do: python tests/benchmarks/bench_limit.py [PART ...].

machine   products of large matrices, plain reads, and the start of Ray and TensorFlow: what the floors are made of
grid      small_cnn in float32 and in bfloat16; Ray Tune and KerasTuner on the same points
race      the same network, raced; Ray Tune's ASHA and KerasTuner's Hyperband
features  24 heads on the features of a backbone, caches empty and filled; KerasTuner on some of the points

Without a part: all of them. Each is kept in build/limit.json, and docs/speed.md is written from those that are there.
About 12 minutes on two cores, alone on the machine, or the figures say nothing. --tiny only tries the command: its
page goes to the terminal.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pyarrow.parquet as pq
from bench_backbone import image_size, keras_tuner, preprocessing
from bench_grid import AUGMENT
from bench_trial import at_once, loop_images_per_s, start_worker
from speed_page import write_page

from orchestrator import machine

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CORES = machine.cpus()
FORWARD_BATCH = 64  # as trials validate
BACKBONE_BATCH = 32  # as features are made


@dataclass(frozen=True)
class Sizes:
    """What is trained.

    Attributes:
        grid, race, heads: Axes. heads_for_peers: those of the points that KerasTuner trains too.
        per_class: Images of each class: of the JPEGs for grid and race, and of those for heads.
        repeats: How often this program runs each; the median counts.
        window_s: How long each bare speed is measured, twice; the faster counts.
    """

    grid: dict[str, list]
    race: dict[str, list]
    heads: dict[str, list]
    heads_for_peers: dict[str, list]
    per_class: tuple[int, int, int]
    repeats: int
    window_s: float


HEADS = {"batch_size": [16, 64], "dropout": [0.0, 0.5], "l2": [0.0, 0.001]}
FULL = Sizes(
    grid={"batch_size": [10, 32], "epochs": [3, 6], "dropout": [0.0, 0.5], "l2": [0.01]},
    race={"batch_size": [8, 16, 32, 64], "epochs": [12], "dropout": [0.0, 0.5], "l2": [0.0, 0.01]},
    heads={**HEADS, "epochs": [5, 10, 20]},
    heads_for_peers={**HEADS, "epochs": [1]},
    per_class=(400, 200, 100),
    repeats=3,
    window_s=2.0,
)
TINY = Sizes(
    grid={"batch_size": [32], "epochs": [1, 2], "dropout": [0.0], "l2": [0.01]},
    race={"batch_size": [32], "epochs": [6], "dropout": [0.0, 0.1, 0.5], "l2": [0.01]},
    heads={"batch_size": [16], "dropout": [0.0, 0.5], "l2": [0.0], "epochs": [1]},
    heads_for_peers={"batch_size": [16], "dropout": [0.0], "l2": [0.0], "epochs": [1]},
    per_class=(40, 40, 10),
    repeats=1,
    window_s=0.2,
)


# --- what the machine can do ------------------------------------------------------------------------------------------


def matmul_flops(dtype: str, window_s: float) -> float:
    """FLOP a second of products of large square matrices in TensorFlow: the best of some sizes and windows."""
    import tensorflow as tf

    best = 0.0
    for side in (1024, 2048):
        a = tf.cast(tf.random.normal((side, side)) / side**0.5, dtype)  # so that products of products stay finite

        @tf.function
        def products(b: tf.Tensor, count: tf.Tensor, a: tf.Tensor = a) -> tf.Tensor:
            for _ in tf.range(count):
                b = tf.matmul(a, b)
            return b

        products(a, tf.constant(1))
        once = _seconds(lambda a=a, run=products: run(a, tf.constant(2)).numpy()) / 2
        count = max(1, int(window_s / 3 / once))
        for _ in range(3):
            took_s = _seconds(lambda a=a, run=products, count=count: run(a, tf.constant(count)).numpy())
            best = max(best, count * 2 * side**3 / took_s)
    return best


@dataclass(frozen=True)
class Bare:
    """A model on one batch that never changes, without input: how fast is that?

    Attributes:
        model: small_cnn, head, or a .keras file. shape: Of an image, or of its features.
    """

    model: str
    shape: tuple[int, ...]
    batch: int = 1
    classes: int = 2
    precision: str = "float32"
    trained: bool = True

    def network(self) -> Any:
        import keras

        from orchestrator.train import model

        if self.model.endswith(".keras"):
            return keras.saving.load_model(self.model, compile=False)
        keras.config.set_dtype_policy(self.precision)
        try:
            return getattr(model, self.model)(self.shape, self.classes, dropout=0.5, l2=0.01)
        finally:
            keras.config.set_dtype_policy("float32")


def images_per_s(bare: Bare, window_s: float) -> float:
    """Of one thread: steps with Adam, or forwards alone."""
    import tensorflow as tf

    from orchestrator.train.optimizers import FusedAdam

    if bare.trained:
        return loop_images_per_s(bare.network(), FusedAdam(0.001), bare.batch, window_s)
    network, images = bare.network(), tf.random.uniform((bare.batch, *bare.shape))
    forward = tf.function(lambda images: network(images, training=False), autograph=False)
    forward(images)
    count, began = 0, time.perf_counter()
    while (took_s := time.perf_counter() - began) < window_s or not count:
        forward(images)
        count += bare.batch
    return count / took_s


def flop(bare: Bare) -> int:
    """For one image, counted over convolutions and matrices: forward, and where it is trained also backward.

    Backward is twice as much, as there are gradients of inputs and of kernels; but nothing asks for that of the images.
    """
    from math import prod

    import keras

    def counted(model: Any) -> Iterator[int]:
        for layer in model.layers:
            if isinstance(layer, keras.Model):
                yield from counted(layer)
            elif (kernel := getattr(layer, "kernel", None)) is not None:
                yield 2 * prod(kernel.shape) * prod(layer.output.shape[1:-1])

    each = list(counted(bare.network()))
    return 3 * sum(each) - each[0] if bare.trained else sum(each)


def workers() -> ProcessPoolExecutor:
    """As many as there are cores, of one thread each: this process never loads TensorFlow."""
    return ProcessPoolExecutor(CORES, mp_context=get_context("spawn"), initializer=start_worker)


def of_all_cores(pool: ProcessPoolExecutor, work: Callable[..., float], *args: Any) -> float:
    """What all workers do together, each the same."""
    return CORES * at_once(pool, CORES, work, *((lambda _, arg=arg: arg) for arg in args))


def decode_s(folder: Path, size: Sequence[int], resize: str) -> float:
    """Every file decoded and resized once with all cores, and thrown away: the faster of two passes."""
    import tensorflow as tf

    from orchestrator.data.stream import decode, thread_options

    @tf.autograph.experimental.do_not_convert
    def one(path: tf.Tensor) -> tf.Tensor:
        return decode(tf.io.read_file(path), 1, tuple(size), resize)

    chain = tf.data.Dataset.from_tensor_slices([str(path) for path in _images(folder)]).map(one, CORES)
    chain = chain.batch(64).with_options(thread_options(CORES))
    return min(_seconds(lambda: list(chain.as_numpy_iterator())) for _ in range(2))


RAY = """
import ray
lazy = {"prestart_worker_first_driver": False}  # no worker before there is a task
ray.init(include_dashboard=False, log_to_driver=False, logging_level="error", _system_config=lazy)
ray.shutdown()
"""
TENSORFLOW = "import tensorflow"


def _started(*codes: str) -> float:
    """Seconds until Python processes, started at once, have run this code and are gone."""

    def start_all() -> None:
        processes = [subprocess.Popen([sys.executable, "-c", code], stdout=-3, stderr=-3) for code in codes]
        statuses = [process.wait() for process in processes]
        if any(statuses):
            sys.exit(f"one of these must run to its end: {codes}")

    return _seconds(start_all)


def measure_machine(sizes: Sizes, data: "Data") -> dict:
    starts = [[_started(TENSORFLOW), _started(RAY), _started(RAY, *[TENSORFLOW] * CORES)] for _ in range(sizes.repeats)]
    tensorflow, ray, both = ([row[i] for row in starts] for i in range(3))
    reads = [_seconds(lambda: _read_all(_images(data.jpegs))) for _ in range(5)]
    size_bytes = sum(path.stat().st_size for path in _images(data.jpegs))
    with workers() as pool:
        float32 = of_all_cores(pool, matmul_flops, "float32", sizes.window_s)
        bfloat16 = of_all_cores(pool, matmul_flops, "bfloat16", sizes.window_s) if machine.has_bfloat16() else None
    return {
        "float32": float32,
        "mixed_bfloat16": bfloat16,
        "read_bytes_per_s": size_bytes / statistics.median(reads),
        "tensorflow_s": tensorflow,
        "ray_s": ray,
        "start_s": both,
    }


def _read_all(paths: Sequence[Path]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: len(path.read_bytes()), paths))


# --- what a run takes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run of this program.

    Attributes:
        epochs: Batch size -> epochs trained, over all trials. images: That train, and that validate.
        scores: val_accuracy of the points that are ok, ascending.
    """

    wall_s: float
    epochs: dict[int, int]
    images: tuple[int, int]
    scores: list[float]


def ours(folder: Path, grid: dict, *sets: str, scratch: str, name: str) -> Run:
    """This program, from the command to its end. Its caches are those of `scratch`. sets: PATH=VALUE."""
    every = [f"grid={json.dumps(grid)}", f"name={name}", *sets]
    args = ["--data", str(folder), "--output", scratch, "--json", *(part for s in every for part in ("--set", s))]
    wall_s, printed = _run(["-m", "orchestrator.grid", *args], ORCHESTRATOR_CACHE_DIR=f"{scratch}/cache")
    rows = json.loads(printed)["rows"]
    history = pq.read_table(Path(scratch, name, "history.parquet")).to_pylist()
    trained = {(row["trial_id"], row["epoch"]) for row in history}
    sizes = {row["trial_id"]: row["batch_size"] for row in rows}
    classes = json.loads(Path(scratch, name, "dataset.json").read_text())["classes"].values()
    images = sum(each["training"] for each in classes), sum(each["validation"] for each in classes)
    scores = sorted(row["val_accuracy"] for row in rows if row["status"] == "ok")
    return Run(wall_s, dict(Counter(sizes[trial] for trial, _ in trained)), images, scores)


def peer(name: str, folder: Path, grid: dict, side: int) -> tuple[float, Any]:
    """Seconds of a whole process of peers.py, and what it found."""
    wall_s, printed = _run([str(HERE / "peers.py"), name, str(folder), json.dumps(grid)], PEER_SIDE=str(side))
    said = json.loads(printed.strip().splitlines()[-1])
    return wall_s, said.get("val_accuracy") or said.get("winner")


def _run(args: list[str], **env: str) -> tuple[float, str]:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, env={**os.environ, **env})
    if done.returncode:
        sys.exit(f"{' '.join(args[:2])} must end well, got status {done.returncode}:\n{done.stderr[-3000:]}")
    return time.perf_counter() - began, done.stdout


@dataclass(frozen=True)
class Data:
    """What is trained on: folders of images, and the file of a backbone."""

    jpegs: Path
    few_jpegs: Path
    classes: Path
    backbone: str


@contextmanager
def some_images(jpegs: Path, classes: Path, backbone: str, sizes: Sizes) -> Iterator[Data]:
    """The first images of each class, in folders of their own."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch, name) for name in ("jpegs", "few", "classes")]
        for source, to, count in zip((jpegs, jpegs, classes), folders, sizes.per_class, strict=True):
            for each in sorted(source.iterdir()):
                (to / each.name).mkdir(parents=True)
                for path in sorted(each.iterdir())[:count]:
                    shutil.copy(path, to / each.name)
        yield Data(*folders, os.path.abspath(backbone))


def _images(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*"))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


Work = list[tuple[Bare, int]]  # how many images a model sees


def work_of(run: Run, bare: Bare) -> Work:
    """What a run trained and validated, with this model."""
    training, validation = run.images
    steps = [(replace(bare, batch=batch), epochs * training) for batch, epochs in run.epochs.items()]
    return [*steps, (replace(bare, batch=FORWARD_BATCH, trained=False), sum(run.epochs.values()) * validation)]


def make_rows(
    kinds: Sequence[tuple[str, Sequence[Run], Work, Path | None]], size: Sequence[int], resize: str, window_s: float
) -> list[dict]:
    """What is kept of the runs of each kind. kinds: name, runs, work, and the images that are read and decoded.

    window_s: seconds for which each bare speed is measured.
    """
    rows = []
    with workers() as pool:
        models = {bare for _, _, work, _ in kinds for bare, _ in work}
        rounds = [{bare: of_all_cores(pool, images_per_s, bare, window_s) for bare in models} for _ in range(2)]
        speeds = {bare: max(each[bare] for each in rounds) for bare in models}
        flops = {bare: pool.submit(flop, bare).result() for bare in models}
        folders = {folder for *_, folder in kinds if folder}
        decoding_s = {folder: pool.submit(decode_s, folder, size, resize).result() for folder in folders}
    for what, runs, work, folder in kinds:
        rows.append(
            {
                "what": what,
                "precision": work[0][0].precision,
                "flop": sum(flops[bare] * images for bare, images in work),
                "bare_s": sum(images / speeds[bare] for bare, images in work) + decoding_s.get(folder, 0),
                "bytes": sum(path.stat().st_size for path in _images(folder)) if folder else 0,
                "walls_s": sorted(run.wall_s for run in runs),
                "epochs": sum(runs[0].epochs.values()),
                "images": sum(runs[0].images),
                "scores": [runs[0].scores[0], runs[0].scores[-1]],
            }
        )
    return rows


def _cold(folder: Path, grid: dict, *sets: str) -> Run:
    with tempfile.TemporaryDirectory() as scratch:
        return ours(folder, grid, *sets, scratch=scratch, name="a")


def measure_grid(sizes: Sizes, data: Data) -> dict:
    side, folder = 64, data.jpegs
    sets = (AUGMENT, f"data.image_size={side}", "data.resize=nearest")
    precisions = ["float32", *(["mixed_bfloat16"] if machine.has_bfloat16() else [])]
    rounds = [  # in turn, so that a change of the machine's pace meets all alike
        [_cold(folder, sizes.grid, *sets, f"train.precision={precision}") for precision in precisions]
        for _ in range(sizes.repeats)
    ]
    kinds = []
    for precision, runs in zip(precisions, zip(*rounds, strict=True), strict=True):
        work = work_of(runs[0], Bare("small_cnn", (side, side, 3), precision=precision))
        kinds.append((f"small_cnn, {precision}", runs, work, folder))
    rows = make_rows(kinds, (side, side), "nearest", sizes.window_s)
    peers = []
    for name, says in (("ray-tune", "Ray Tune over the notebook's loop"), ("keras-tuner", "KerasTuner over tf.data")):
        wall_s, scores = peer(name, folder, sizes.grid, side)
        peers.append({"says": says, "wall_s": wall_s, "scores": [min(scores), max(scores)]})
    return {"grid": sizes.grid, "side": side, "rows": rows, "peers": peers}


def measure_race(sizes: Sizes, data: Data) -> dict:
    side, folder = 32, data.few_jpegs
    sets = (AUGMENT, f"data.image_size={side}", "data.resize=nearest")
    raced = [_cold(folder, sizes.race, *sets, "race=true") for _ in range(sizes.repeats)]
    full = [_cold(folder, sizes.race, *sets)]
    bare = Bare("small_cnn", (side, side, 3))
    kinds = [
        (what, runs, work_of(runs[0], bare), folder)
        for what, runs in (("small_cnn, raced", raced), ("the same points in full", full))
    ]
    rows = make_rows(kinds, (side, side), "nearest", sizes.window_s)
    peers = []
    for name, says in (("ray-asha", "Ray Tune, ASHA"), ("hyperband", "KerasTuner, Hyperband")):
        peers.append({"says": says, "wall_s": peer(name, folder, sizes.race, side)[0]})
    return {"grid": sizes.race, "side": side, "rows": rows, "peers": peers}


def measure_features(sizes: Sizes, data: Data) -> dict:
    folder, file, size = data.classes, data.backbone, image_size(data.backbone)
    sets = ("augment={}", f"backbone={file}", f"data.image_size={size}")
    cold, warm = [], []
    for _ in range(sizes.repeats):
        with tempfile.TemporaryDirectory() as scratch:
            cold.append(ours(folder, sizes.heads, *sets, scratch=scratch, name="cold"))
            warm.append(ours(folder, sizes.heads, *sets, scratch=scratch, name="warm"))
    few = [_cold(folder, sizes.heads_for_peers, *sets)]
    with workers() as pool:
        width = pool.submit(feature_width, file).result()
    head = Bare("head", (width,), classes=len(list(folder.iterdir())))
    made: Work = [(Bare(file, (*size, 3), BACKBONE_BATCH, trained=False), len(_images(folder)))]
    points = len(cold[0].scores)
    kinds = [
        (f"{points} heads, caches empty", cold, work_of(cold[0], head) + made, folder),
        (f"{points} heads, features cached", warm, work_of(warm[0], head), None),
        ("heads on features", few, work_of(few[0], head) + made, folder),
    ]
    *rows, mine = make_rows(kinds, size, "bilinear", sizes.window_s)
    wall_s, scores = keras_tuner(file, folder, sizes.heads_for_peers, preprocessing(file))
    says = "KerasTuner, the backbone frozen in its model"
    return {
        "grid": sizes.heads,
        "side": size[0],
        "backbone": Path(file).name,
        "rows": rows,
        "peers_grid": sizes.heads_for_peers,
        "ours": [mine],
        "peers": [{"says": says, "wall_s": wall_s, "scores": [min(scores), max(scores)]}],
    }


def feature_width(file: str) -> int:
    return int(Bare(file, ()).network().output_shape[-1])


PARTS = {"machine": measure_machine, "grid": measure_grid, "race": measure_race, "features": measure_features}


def this_machine() -> dict[str, Any]:
    """What figures are only true of."""
    words = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in words.splitlines() if line.startswith("model name")]
    known = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "bf16")
    return {
        "cores": CORES,
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "features": [each for each in known if each in words.split()],
        "versions": {"Python": platform.python_version()}
        | {name: version(name) for name in ("tensorflow", "keras", "ray", "keras-tuner")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--jpegs", type=Path, default=ROOT / "build/jpegs", help="of make_jpegs.py")
    parser.add_argument("--classes", type=Path, default=ROOT / "build/classes", help="<class>/<image>, for the heads")
    parser.add_argument("--backbone", default=str(ROOT / "orchestrator/data/sample/backbones/fashion.keras"))
    parser.add_argument("--tiny", action="store_true", help="try the command; its figures say nothing")
    args = parser.parse_args()
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"PART must be one of {', '.join(PARTS)}, got {', '.join(unknown)}")
    kept, sizes = ROOT / "build" / ("limit-tiny.json" if args.tiny else "limit.json"), TINY if args.tiny else FULL
    found = json.loads(kept.read_text()) if kept.exists() else {}
    about = this_machine()
    found = {name: part for name, part in found.items() if part["machine"] == about}  # others cannot stand beside it
    wanted = [
        part for part in PARTS if part in args.parts or not args.parts or (part == "machine" and part not in found)
    ]
    with some_images(args.jpegs, args.classes, args.backbone, sizes) as data:
        for part in wanted:
            print(f"{part} ...", end=" ", flush=True)
            began = time.perf_counter()
            commit = subprocess.run(
                ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
            )
            when = datetime.now().strftime("%Y-%m-%d %H:%M")
            found[part] = {**PARTS[part](sizes, data), "when": when, "commit": commit.stdout.strip(), "machine": about}
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps(found, indent=1))
            print(f"{time.perf_counter() - began:.0f} s", flush=True)
    if args.tiny:
        print(write_page(found))
    else:
        (ROOT / "docs/speed.md").write_text(write_page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
