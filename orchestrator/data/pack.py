"""Pack: images laid out <class>/<image> -> Parquet shards. `python -m orchestrator.pack SRC DST`.

The shards follow Hugging Face's image-folder convention and hold the encoded images as they are. Which image goes where
depends on the listing alone (`lay_out`, pure), and a shard is written whole or not at all. So the same command again
writes only the shards that are missing.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from orchestrator.data.index import Index, describe_bad
from orchestrator.data.indexing import build_index
from orchestrator.data.layout import SPLITS, TEST, TRAINING, VALIDATION
from orchestrator.data.shards import open_shard
from orchestrator.errors import BadInput
from orchestrator.spec.sections import Data
from orchestrator.store import Object, Store, StoreError
from orchestrator.words import plural

INTERRUPTED = 130
MB = 10**6
ROW_GROUP_BYTES = 8 * 2**20  # of encoded images, which one ranged request reads
TAG = b"orchestrator.pack"


@dataclass(frozen=True, slots=True)
class Shard:
    """One Parquet file.

    Attributes:
        key: Its place in DST.
        tag: SHA-256 over the index digest, the shard size and the shard's number; kept in its metadata.
        rows: Positions of its images in the index.
    """

    key: str
    tag: bytes
    rows: range


def cut(sizes: Sequence[int], limit: int) -> list[range]:
    """Cut a sequence into runs, each as long as `limit` bytes allow; a larger item is a run of its own. Pure."""
    runs, start, run_bytes = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and run_bytes + size > limit:
            runs.append(range(start, i))
            start, run_bytes = i, 0
        run_bytes += size
    return [*runs, range(start, len(sizes))] if sizes else []


def lay_out(index: Index, shard_bytes: int) -> tuple[Shard, ...]:
    """Which image goes into which shard. Pure: the same images and shard size give the same shards."""
    sizes, splits = index.table["size"].to_pylist(), _given(index)
    shards: list[Shard] = []
    for split in np.unique(splits).tolist():
        first, end = np.searchsorted(splits, [split, split + 1]).tolist()
        runs = cut(sizes[first:end], shard_bytes)
        name = SPLITS[split] if index.given else "shard"
        for i, run in enumerate(runs):
            tag = hashlib.sha256(f"{index.digest} {shard_bytes} {len(shards)}".encode()).hexdigest()
            rows = range(first + run.start, first + run.stop)
            shards.append(Shard(f"{name}-{i:05}-of-{len(runs):05}.parquet", tag.encode(), rows))
    return tuple(shards)


def _given(index: Index) -> np.ndarray:
    """(images,) what each image came for, ascending once the images are in order; all alike where nothing is given."""
    part = np.where(index.part == TEST, TEST, np.where(index.part == 0, VALIDATION, TRAINING))
    return np.where(np.isin(part, index.given), part, TRAINING)


def pack(src: Store, dst: Store, shard_mb: int, skip_bad: bool, console: Console) -> dict[str, Any]:
    """Write the shards that DST lacks, one at a time. Returns what is there now: see docs/json.md. Raises BadInput."""
    began = time.monotonic()
    index = _images(src, dst, skip_bad)
    shards = lay_out(index, shard_mb * MB)
    missing = _missing(dst, shards)
    objects = index.objects
    console.out(
        f"{plural(len(index), 'image')} of {len(index.classes)} classes in {src.uri}: {plural(len(shards), 'shard')}, "
        f"{len(shards) - len(missing)} already in {dst.uri}{_left_out(index)}"
    )
    todo = [objects[row] for shard in missing for row in shard.rows]
    rate, left = TextColumn("{task.fields[rate]:.0f} images/s"), TimeRemainingColumn(compact=True)
    terminal = console.is_terminal
    bar = Progress(BarColumn(), DownloadColumn(), rate, left, console=console, transient=True, disable=not terminal)
    task = bar.add_task("", total=sum(o.size for o in todo), rate=0.0)

    def with_progress(blobs: Iterator[bytes]) -> Iterator[bytes]:
        read_since = time.monotonic()
        for done, blob in enumerate(blobs, start=1):
            bar.update(task, advance=len(blob), rate=done / (time.monotonic() - read_since))
            yield blob

    with bar, contextlib.closing(src.read_many(todo)) as blobs:
        images = with_progress(blobs)
        for shard in missing:
            dst.write(shard.key, encode(index, shard, images))
            if not terminal:
                console.out(
                    f"{shard.key}: {plural(len(shard.rows), 'image')}, {_mb(objects[row] for row in shard.rows)}"
                )
    console.out(
        f"{plural(len(index), 'image')}, {plural(len(shards), 'shard')}, {_mb(objects)}, "
        f"{time.monotonic() - began:.1f} s: python -m orchestrator.grid SPEC --data {shlex.quote(dst.uri)}"
    )
    return {
        "source": src.uri,
        "destination": dst.uri,
        "images": len(index),
        "classes": list(index.classes),
        "size_bytes": sum(o.size for o in objects),
        "shards": [shard.key for shard in shards],
        "written": [shard.key for shard in missing],
        "left_out": [{"path": key, "reason": reason} for key, reason in index.bad],
    }


def encode(index: Index, shard: Shard, blobs: Iterator[bytes]) -> bytes:
    """The shard as a Parquet file. blobs: its encoded images, in order."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(index.classes), "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}}), TAG: shard.tag},
    )
    sizes = index.table["size"].slice(shard.rows.start, len(shard.rows)).to_pylist()
    out = io.BytesIO()
    # encoded images do not compress, and no reader needs their minimum and maximum
    with pq.ParquetWriter(
        out, schema, compression="none", use_dictionary=False, write_statistics=["image.path", "label"]
    ) as writer:
        for run in cut(sizes, ROW_GROUP_BYTES):
            rows = index.table.slice(shard.rows[run.start], len(run)).combine_chunks()
            encoded = pa.array(itertools.islice(blobs, len(run)), pa.binary())
            image = pa.StructArray.from_arrays([encoded, rows["path"].chunk(0)], names=["bytes", "path"])
            writer.write_table(pa.table([image, rows["label"].cast(pa.int64())], schema=schema))
    return out.getvalue()


def _images(src: Store, dst: Store, skip_bad: bool) -> Index:
    inner, outer = (s.uri if "://" in s.uri else os.path.realpath(s.uri).rstrip("/") for s in (dst, src))
    if f"{inner}/".startswith(f"{outer}/"):
        raise BadInput(f"DST must lie outside SRC, got {dst.uri} in {src.uri}: the shards would count as its images")
    # a split of one half needs the fewest images: two in each class
    index = build_index(src, Data(uri=src.uri, validation_split=0.5, on_bad_image="skip"))
    if index.packed:
        raise BadInput(f"SRC must hold images as <class>/<image>, got Parquet shards in {src.uri}: they are packed")
    if index.bad and not skip_bad:
        raise BadInput(describe_bad(index.bad).replace("--set data.on_bad_image=skip", "--skip-bad"))
    if index.grouped:
        raise BadInput(f"SRC must hold images without groups, got some in {index.what}: shards would forget them")
    order = np.argsort(_given(index), kind="stable")
    return replace(index, table=index.table.take(order), part=index.part[order], content=None)


def _mb(objects: Iterable[Object]) -> str:
    return f"{sum(o.size for o in objects) / MB:.1f} MB"


def _left_out(index: Index) -> str:
    names = [f"{key} ({reason})" for key, reason in index.bad]
    more = [f"and {len(names) - 10} more"] if len(names) > 10 else []
    beside = [f"{plural(index.ignored, 'file')} beside the class folders"] if index.ignored else []
    left_out = "; ".join([*names[:10], *more, *beside])
    return f"; left out: {left_out}" if left_out else ""


def _missing(dst: Store, shards: Sequence[Shard]) -> list[Shard]:
    """The shards to write. Raises BadInput if DST holds shards of something else."""
    missing = {shard.key: shard for shard in shards}
    for existing in dst.list():
        if not existing.key.lower().endswith(".parquet"):
            continue
        tag = None
        try:
            with open_shard(dst, existing) as parquet:
                tag = (parquet.schema_arrow.metadata or {}).get(TAG)
        except StoreError:
            raise
        except BadInput:  # cut short, perhaps while it was copied
            if existing.key in missing:
                continue
        if existing.key not in missing or missing.pop(existing.key).tag != tag:
            raise BadInput(
                f"DST must be empty or hold shards of the same images and --shard-mb, got another {existing.key} in "
                f"{dst.uri}: give another DST, or delete its shards"
            )
    return list(missing.values())
