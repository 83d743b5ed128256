"""Makes the benchmark's image folder: photograph-sized JPEGs of Fashion-MNIST's shirts and T-shirts.

python tests/benchmarks/make_jpegs.py IDX_DIR DST [--per-class 4000,4005] writes DST/shirt/00000.jpg ... and
DST/t-shirt/00000.jpg ...: each 280 to 500 pixels wide and high, tinted, noisy enough to weigh about 34 KB.
Every pixel follows from (class, number), so the folder is the same on any number of cores.
"""

import argparse
import gzip
import io
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {"shirt": 6, "t-shirt": 0}  # ours -> Fashion-MNIST's
DEBIAN_IDX_DIR = Path("/usr/share/datasets/fashion-mnist")
SIDE_RANGE = (280, 500)
NOISE_SIGMA = 11.0
QUALITY = 85


def images_by_class(idx_dir: Path) -> dict[str, np.ndarray]:
    """Class name -> (image, 28, 28) uint8: the training images, then the test images."""
    parts = []
    for part in ("train", "t10k"):
        pixels = gzip.decompress((idx_dir / f"{part}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((idx_dir / f"{part}-labels-idx1-ubyte.gz").read_bytes())
        parts.append((np.frombuffer(pixels, np.uint8, offset=16), np.frombuffer(labels, np.uint8, offset=8)))
    images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 28, 28)
    labels = np.concatenate([labels for _, labels in parts])
    return {name: images[labels == theirs] for name, theirs in CLASSES.items()}


def jpeg(grey: np.ndarray, class_name: str, number: int) -> bytes:
    """One 28 x 28 image as a large coloured JPEG; all chance is keyed by (class_name, number)."""
    rng = np.random.default_rng([list(CLASSES).index(class_name), number])
    width, height = (int(side) for side in rng.integers(*SIDE_RANGE, size=2, endpoint=True))
    large = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    tint = rng.uniform(0.4, 1.0, size=3).astype(np.float32)
    coloured = large[..., None] * tint
    coloured += NOISE_SIGMA * rng.standard_normal((height, width, 3), dtype=np.float32)
    out = io.BytesIO()
    Image.fromarray(coloured.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def write_chunk(chunk: tuple[str, int, np.ndarray], dst: Path) -> int:
    """Write one run of consecutive images of a class; returns their bytes."""
    class_name, first, images = chunk
    size_bytes = 0
    for number, grey in enumerate(images, start=first):
        size_bytes += (dst / class_name / f"{number:05}.jpg").write_bytes(jpeg(grey, class_name, number))
    return size_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("idx_dir", type=Path, nargs="?", default=DEBIAN_IDX_DIR, help="default: %(default)s")
    parser.add_argument("dst", type=Path)
    parser.add_argument("--per-class", default="4000,4005", help="how many shirts, T-shirts (default: %(default)s)")
    args = parser.parse_args()
    counts = dict(zip(CLASSES, map(int, args.per_class.split(",")), strict=True))

    started = time.monotonic()
    images = images_by_class(args.idx_dir)
    for name, count in counts.items():
        if count > len(images[name]):
            parser.error(f"--per-class: {name} must be at most {len(images[name])}, got {count}")
        (args.dst / name).mkdir(parents=True, exist_ok=True)
    chunks = [
        (name, first, images[name][first : min(first + 100, count)])
        for name, count in counts.items()
        for first in range(0, count, 100)
    ]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        size_bytes = sum(pool.map(partial(write_chunk, dst=args.dst), chunks))
    files = sum(counts.values())
    print(
        f"{files} files, {size_bytes / 1e6:.1f} MB, {size_bytes / max(files, 1) / 1e3:.1f} KB each, "
        f"{time.monotonic() - started:.1f} s"
    )


if __name__ == "__main__":
    main()
