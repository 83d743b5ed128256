"""Images: small image files, class folders and Parquet shards for tests. Pure: the same call makes the same bytes."""

import io
import json
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from orchestrator.store import Store


def picture(number: int, height: int = 24, width: int = 32) -> np.ndarray:
    """(height, width, 3) uint8: smooth enough for a JPEG to keep, another one for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, form: str = "PNG", mode: str = "RGB", **options: object) -> bytes:
    """The pixels as a file of Pillow's format `form`, converted to its `mode` first."""
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, form, **options)
    return out.getvalue()


def class_folder(counts: Mapping[str, int], height: int = 24, width: int = 32) -> dict[str, bytes]:
    """Key -> PNG: `counts` images of each class, as <class>/<number>.png."""
    keys = [f"{name}/{number:04}.png" for name, count in counts.items() for number in range(count)]
    return {key: encoded(picture(i, height, width)) for i, key in enumerate(keys)}


def fill(store: Store, files: Mapping[str, bytes]) -> Store:
    """Write the files into the store."""
    for key, data in files.items():
        store.write(key, data)
    return store


def shard(
    rows: Iterable[tuple[str | None, bytes | None, int | str | None]],
    names: list[str] | None = None,
    row_group_size: int = 16,
) -> bytes:
    """A Parquet file of (path, image file, label) rows as Hugging Face writes an image folder."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    rows = list(rows)
    label = pa.string() if any(isinstance(row[2], str) for row in rows) else pa.int64()
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", label)], metadata=metadata
    )
    columns = [{"image": {"bytes": data, "path": path}, "label": label} for path, data, label in rows]
    return parquet(pa.Table.from_pylist(columns, schema=schema), row_group_size=row_group_size)


def parquet(table: pa.Table, **options: object) -> bytes:
    """The table as a Parquet file."""
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def as_shards(files: Mapping[str, bytes], count: int) -> dict[str, bytes]:
    """What `class_folder` made, as `count` Parquet shards instead."""
    names = sorted({key.split("/")[0] for key in files})
    rows = [(key, data, names.index(key.split("/")[0])) for key, data in files.items()]
    return {f"data/train-{i:05}-of-{count:05}.parquet": shard(rows[i::count], names) for i in range(count)}
