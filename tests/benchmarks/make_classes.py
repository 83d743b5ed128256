"""Makes a folder of Fashion-MNIST's ten classes as 64 x 64 PNGs, for bench_backbone.py.

python tests/benchmarks/make_classes.py IDX_DIR DST [--per-class 400] writes DST/0/0000.png ...: the first
training images of each class, enlarged.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from make_jpegs import DEBIAN_IDX_DIR
from PIL import Image

SIDE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("idx_dir", type=Path, nargs="?", default=DEBIAN_IDX_DIR, help="default: %(default)s")
    parser.add_argument("dst", type=Path)
    parser.add_argument("--per-class", type=int, default=400)
    args = parser.parse_args()
    pixels = gzip.decompress((args.idx_dir / "train-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((args.idx_dir / "train-labels-idx1-ubyte.gz").read_bytes())
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)
    classes = np.frombuffer(labels, np.uint8, offset=8)
    for label in range(10):
        (args.dst / str(label)).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images[classes == label][: args.per_class]):
            large = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            large.convert("RGB").save(args.dst / str(label) / f"{number:04}.png")


if __name__ == "__main__":
    main()
