"""Streaming, measured side by side: python tests/benchmarks/bench_stream.py FOLDER [--repeat 3].

FOLDER: images as <class>/<image>, such as make_jpegs.py writes. A SeaweedFS on loopback serves them from this machine,
so server and client share its cores. Prints one line for each comparison: what was measured, the figures, the ratio.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import obstore
from proxy import Proxy
from seaweedfs import running

from orchestrator.data.cache import open_cache
from orchestrator.data.index import Index
from orchestrator.data.indexing import build_index
from orchestrator.spec.sections import Augment, Data
from orchestrator.store import Store, open_store

LATENCY_S = 0.02
BUCKET = "s3://bench"


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def medians(repeat: int, *works: Callable[[], object]) -> list[float]:
    """Each in turn, again and again, so that a change of the machine's pace meets all alike."""
    taken = [[seconds(work) for work in works] for _ in range(repeat)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


def fetch_all(store: Store, index: Index) -> None:
    """Every object once with plain obstore and threads, thrown away."""
    client, root = store._client, store._root
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(lambda key: len(obstore.get(client, root + key).bytes()), index.table["key"].to_pylist()))


def decode_all(folder: Path, index: Index, scaled: bool) -> None:
    """Every file once from local disk with every core, thrown away.

    scaled: as we decode, with the decoder's own down-scaling; else at full size, and then resized in the same way.
    """
    import tensorflow as tf

    from orchestrator.data.stream import decode, thread_options

    @tf.autograph.experimental.do_not_convert
    def whole(blob: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.image.resize(tf.io.decode_jpeg(blob, 3), (64, 64), antialias=True), tf.uint8)

    @tf.autograph.experimental.do_not_convert
    def ours(blob: tf.Tensor) -> tf.Tensor:
        return decode(blob, 1, (64, 64), "bilinear")

    one = ours if scaled else whole

    cores = os.cpu_count() or 1
    chain = (
        tf.data.Dataset.from_tensor_slices([str(folder / key) for key in index.table["key"].to_pylist()])
        .map(tf.autograph.experimental.do_not_convert(lambda path: one(tf.io.read_file(path))), cores)
        .batch(64)
        .with_options(thread_options(cores))
    )
    for _ in chain:
        pass


def into_cache(store: Store, index: Index) -> None:
    """From the first request to the decoded cache."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ORCHESTRATOR_CACHE_DIR"] = folder
        cache = open_cache(index, store, Data(uri=BUCKET))
        assert cache.images is not None
        assert not cache.bad


def plain_ranges(store: Store, index: Index) -> int:
    """Every shard in ranges of 8 MiB with 8 threads of the same client, thrown away. Returns the bytes."""
    step = 8 * 2**20
    ranges = [(o.key, at, min(step, o.size - at)) for o in index.objects for at in range(0, o.size, step)]

    def get(part: tuple[str, int, int]) -> int:
        key, at, length = part
        return len(obstore.get_range(store._client, store._root + key, start=at, length=length))

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(get, ranges))


def our_shards(store: Store, index: Index) -> None:
    """Every encoded image of the shards, as the pipeline gets them."""
    from orchestrator.data.stream import Encoded

    assert sum(1 for _ in Encoded(index, store).blobs(np.arange(len(index)))) == len(index)


def far_away(endpoint: str, to_parent, stop) -> None:
    """Pass bytes on, the client's a little later. tests/proxy.py would read each answer, and take a core for itself."""
    upstream = urllib.parse.urlsplit(endpoint)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)

    def passed_on(source: socket.socket, target: socket.socket, delay_s: float) -> None:
        buffer = memoryview(bytearray(2**18))
        with contextlib.suppress(OSError):
            while size := source.recv_into(buffer):
                time.sleep(delay_s)
                target.sendall(buffer[:size])
            target.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            client = listener.accept()[0]
            server = socket.create_connection((upstream.hostname, upstream.port))
            for s in (client, server):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for way in ((client, server, LATENCY_S), (server, client, 0.0)):
                threading.Thread(target=passed_on, args=way, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    to_parent.send(f"http://127.0.0.1:{listener.getsockname()[1]}")
    stop.wait()


def streamed_epoch_mb(uri: str, side: int, limit_gb: float) -> float:
    """How far one streamed epoch lifts this process' memory, in MB."""
    import tensorflow as tf

    from orchestrator.data.pipeline import Source, training_batches
    from orchestrator.data.stream import Encoded

    def peak_mb(name: str) -> float:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024

    store = open_store(uri)
    data = Data(uri=uri, image_size=side, cache_limit_gb=limit_gb)
    index = build_index(store, data)
    rows = np.flatnonzero(~index.validates())
    source = Source(None, tf.zeros([len(index), 1]), data, Augment(rotation_deg=20), 0, 1, Encoded(index, store))
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_mb("VmRSS")
    for _ in training_batches(source, rows, 32, 0, 1):
        pass
    return peak_mb("VmHWM") - before


def requests_of_a_grid(server, folder: Path) -> tuple[int, int, int]:
    """A real grid of 8 trials and 3 epochs: objects, the most and the fewest GETs of one."""
    store = open_store(f"{BUCKET}/few")
    keys = [f"{name.name}/{path.name}" for name in sorted(folder.iterdir()) for path in sorted(name.iterdir())[:150]]
    for key in keys:
        store.write(key, (folder / key).read_bytes())
    grid = "grid={batch_size: [16, 32], epochs: [3], dropout: [0.0, 0.5], l2: [0.0, 0.01]}"
    with Proxy(server.endpoint) as proxy, tempfile.TemporaryDirectory() as scratch:
        env = {**os.environ, "AWS_ENDPOINT_URL": proxy.endpoint, "ORCHESTRATOR_CACHE_DIR": f"{scratch}/cache"}
        args = ["--data", f"{BUCKET}/few", "--output", scratch, "--set", grid, "--set", "data.image_size=64"]
        command = [sys.executable, "-m", "orchestrator.grid", *args, "--json"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert [row["status"] for row in json.loads(done.stdout)["rows"]] == ["ok"] * 8
        counts = [proxy.requests["GET", f"/bench/few/{key}"] for key in keys]
    return len(keys), max(counts), min(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch, running(Path(scratch)) as server:
        os.environ.update(server.env())
        import boto3

        boto3.client("s3").create_bucket(Bucket="bench")
        store = open_store(f"{BUCKET}/jpegs")
        for path in sorted(args.folder.glob("*/*")):
            store.write(f"{path.parent.name}/{path.name}", path.read_bytes())
        index = build_index(store, Data(uri=BUCKET))
        size_mb = sum(o.size for o in index.objects) / 1e6
        print(f"{len(index)} images, {size_mb:.0f} MB, {os.cpu_count()} cores, medians of {args.repeat}", flush=True)

        count, most, fewest = requests_of_a_grid(server, args.folder)
        print(f"GETs of each of {count} objects in a grid of 8 trials x 3 epochs: at least {fewest}, at most {most}")

        into_cache(store, index)  # TensorFlow is imported, every file is in memory
        decode_all(args.folder, index, scaled=False)
        fetch_s, whole_s, scaled_s, ours_s = medians(
            args.repeat,
            lambda: fetch_all(store, index),
            lambda: decode_all(args.folder, index, scaled=False),
            lambda: decode_all(args.folder, index, scaled=True),
            lambda: into_cache(store, index),
        )
        print(
            f"store to cache: {ours_s:.2f} s; fetch and throw away {fetch_s:.2f} s, then decode local files "
            f"{whole_s:.2f} s: ratio {ours_s / (fetch_s + whole_s):.2f} (bar: 1.00); or decode them scaled, as here, "
            f"{scaled_s:.2f} s: ratio {ours_s / (fetch_s + scaled_s):.2f}",
            flush=True,
        )

        receive, send = spawn.Pipe(duplex=False)
        stop = spawn.Event()
        process = spawn.Process(target=far_away, args=(server.endpoint, send, stop))
        process.start()
        os.environ["AWS_ENDPOINT_URL"] = receive.recv()
        far = open_store(f"{BUCKET}/jpegs")
        far_fetch_s, far_s = medians(args.repeat, lambda: fetch_all(far, index), lambda: into_cache(far, index))
        stop.set()
        process.join()
        os.environ["AWS_ENDPOINT_URL"] = server.endpoint
        print(
            f"with {LATENCY_S * 1000:.0f} ms of latency: {far_s:.2f} s; fetch {far_fetch_s:.2f} s, decode "
            f"{whole_s:.2f} s: {far_s / max(far_fetch_s, whole_s):.2f} of the slower (bar: 1.30)",
            flush=True,
        )

        subprocess.run(
            [sys.executable, "-m", "orchestrator.pack", str(args.folder), f"{BUCKET}/shards"], check=True, stdout=-3
        )
        for copy in range(1, 4):  # about 1 GB in all
            for o in list(open_store(f"{BUCKET}/shards").list()):
                if o.key.startswith("shard"):
                    open_store(f"{BUCKET}/shards").write(
                        f"copy{copy}-{o.key}", open_store(f"{BUCKET}/shards").read(o.key)
                    )
        shards = open_store(f"{BUCKET}/shards")
        packed = build_index(shards, Data(uri=BUCKET))
        packed_mb = sum(o.size for o in packed.objects) / 1e6
        plain_s, ours_s = medians(args.repeat, lambda: plain_ranges(shards, packed), lambda: our_shards(shards, packed))
        print(
            f"{packed_mb:.0f} MB of shards: {packed_mb / ours_s:.0f} MB/s; plain ranged reads, 8 threads "
            f"{packed_mb / plain_s:.0f} MB/s: ratio {plain_s / ours_s:.2f} (bar: 0.80)",
            flush=True,
        )

        side = 256
        decoded_mb = len(index) * side * side * 3 / 1e6
        for name, uri in (("single objects", f"{BUCKET}/jpegs"), ("shards", f"{BUCKET}/shards")):
            with spawn.Pool(1) as pool:
                grown_mb = pool.apply(streamed_epoch_mb, (uri, side, decoded_mb / 20 / 1000))
            print(
                f"streaming {name} at {side}x{side}: memory grew by {grown_mb:.0f} MB, limit {decoded_mb / 20:.0f} MB "
                f"(bar: limit + 300 MB)",
                flush=True,
            )


if __name__ == "__main__":
    main()
