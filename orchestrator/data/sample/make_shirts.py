"""Makes shirts/train.parquet: python -m orchestrator.data.sample.make_shirts [IDX_DIR].

IDX_DIR holds Fashion-MNIST as published (train-images-idx3-ubyte.gz ...); by default where Debian's
dataset-fashion-mnist puts it. The same libraries write the same bytes every time.
"""

import gzip
import io
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = {"shirt": 6, "t-shirt": 0}  # ours -> Fashion-MNIST's; the order gives our labels
PER_CLASS = 600
SIDE = 28
DEBIAN_IDX_DIR = Path("/usr/share/datasets/fashion-mnist")
TARGET = Path(__file__).with_name("shirts") / "train.parquet"


def first_images(idx_dir: Path, wanted_label: int, count: int) -> list[bytes]:
    """The first `count` training images of one class, in file order, each SIDE x SIDE grey pixels by rows."""
    pixels = gzip.decompress((idx_dir / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((idx_dir / "train-labels-idx1-ubyte.gz").read_bytes())[8:]
    size = SIDE * SIDE
    chosen = (i for i, label in enumerate(labels) if label == wanted_label)
    return [pixels[i * size : (i + 1) * size] for i in itertools.islice(chosen, count)]


def png(grey: bytes) -> bytes:
    """One image as an 8-bit greyscale PNG."""
    out = io.BytesIO()
    Image.frombytes("L", (SIDE, SIDE), grey).save(out, "PNG", compress_level=9)
    return out.getvalue()


def sample(idx_dir: Path) -> pa.Table:
    """The table in Hugging Face's image-folder layout, sorted by path."""
    rows: list[dict[str, Any]] = [
        {"image": {"bytes": png(grey), "path": f"{name}/{number:05}.png"}, "label": label}
        for label, (name, theirs) in enumerate(CLASSES.items())
        for number, grey in enumerate(first_images(idx_dir, theirs, PER_CLASS))
    ]
    rows.sort(key=lambda row: row["image"]["path"])
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    return pa.Table.from_pylist(rows, schema=schema)


def main() -> None:
    idx_dir = Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN_IDX_DIR
    # PNGs do not compress, paths do; a dictionary would hold every value once more.
    pq.write_table(sample(idx_dir), TARGET, row_group_size=300, compression="zstd", use_dictionary=False)
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
