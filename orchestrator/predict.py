"""Predict: what a trained model says of images. `python -m orchestrator.predict RUN_OR_MODEL IMAGES...`"""

import contextlib
import csv
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import numpy as np
import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from orchestrator.dataset.index import IMAGE_SUFFIXES
from orchestrator.errors import BadInput, exit_on_bad_input, run_command
from orchestrator.leaderboard import console
from orchestrator.result import Exported
from orchestrator.run import BEST
from orchestrator.store import Missing, Object, Store, StoreError, open_store


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"


@dataclass(frozen=True)
class Picture:
    """One image to look at. Attributes: path: as it was asked for; listed: None for one that was named itself."""

    path: str
    store: Store
    key: str
    listed: Object | None = None


def main(
    model: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="Run folder, or a .keras file beside its .json.")
    ],
    images: Annotated[list[str], typer.Argument(help="Image files and folders; s3:// as well.")],
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
) -> None:
    """Print the class and its probability for each image, prepared as in training."""
    with exit_on_bad_input():
        data, facts, name = read_model(model)
        pictures, failures = find_pictures(images)
        found = predict(data, facts, name, pictures) if pictures else {}
    failures |= {pictures[i].path: what for i, what in found.items() if isinstance(what, str)}
    _print([(pictures[i].path, what) for i, what in sorted(found.items()) if not isinstance(what, str)], facts, format)
    for path, reason in failures.items():
        print(f"error: {path}: {reason}", file=sys.stderr)
    raise SystemExit(1 if failures else 0)


def read_model(uri: str) -> tuple[bytes, Exported, str]:
    """The .keras file of a run's winner, or the one named, with what stands beside it and its name. Raises BadInput."""
    folder, name = (os.path.split(uri)[0] or ".", os.path.split(uri)[1]) if uri.endswith(".keras") else (uri, "")
    key = name.removesuffix(".keras") or f"models/{BEST}"
    store = open_store(folder)
    try:
        facts = Exported.model_validate_json(store.read(f"{key}.json"))
        return store.read(f"{key}.keras"), facts, f"{store.uri}/{key}.keras"
    except Missing:
        lacking = f"{key}.json" if not store.exists(f"{key}.json") else f"{key}.keras"
        cure = "copy both" if name else "run the grid again without --export-models none"
        raise BadInput(f"{store.uri} must hold {key}.keras and {key}.json, and has no {lacking}: {cure}") from None
    except ValidationError as error:
        raise BadInput(
            f"{store.uri}/{key}.json must be what a grid wrote beside {key}.keras: {error.errors()[0]['msg']}"
        ) from None


def find_pictures(uris: Sequence[str]) -> tuple[list[Picture], dict[str, str]]:
    """Every image that is named, or lies below a folder or prefix that is; and what is none, with the reason."""
    pictures: list[Picture] = []
    failures: dict[str, str] = {}
    for uri in uris:
        try:
            found = list(_below(uri))
        except BadInput as error:
            failures[uri] = str(error)
            continue
        pictures += found
        if not found:
            failures[uri] = f"holds no image ({', '.join(IMAGE_SUFFIXES)})"
    return pictures, failures


def _below(uri: str) -> Iterator[Picture]:
    folder, name = os.path.split(uri)
    if os.path.isfile(uri):
        yield Picture(uri, open_store(folder or "."), name)
        return
    if "://" not in uri and not os.path.exists(uri):
        raise BadInput("there is no such file or folder")
    store = open_store(uri)
    objects = [o for o in store.list() if o.key.lower().endswith(IMAGE_SUFFIXES)]
    if not objects and "://" in uri and name and not folder.endswith(":/"):
        above = open_store(folder)
        if above.exists(name):
            yield Picture(uri, above, name)
    yield from (Picture(f"{uri.rstrip('/')}/{o.key}", store, o.key, o) for o in objects)


class _Encoded:
    """The pictures as dataset.stream reads them; one that cannot be read is empty, with its reason in failures."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._pictures = pictures
        self.failures: dict[int, str] = {}

    def blobs(self, rows: np.ndarray) -> Iterator[bytes]:
        for _, group in itertools.groupby(rows.tolist(), key=lambda row: id(self._pictures[row].store)):
            left = list(group)
            while left:
                row = left[0]
                try:
                    for blob in self._read(left):
                        row = left.pop(0)
                        yield blob
                        row = left[0] if left else row
                except StoreError as error:
                    self.failures[row] = str(error)
                    left.pop(0)
                    yield b""

    def _read(self, rows: Sequence[int]) -> Iterator[bytes]:
        pictures = [self._pictures[row] for row in rows]
        if pictures[0].listed is None:
            return (picture.store.read(picture.key) for picture in pictures)
        return pictures[0].store.read_many(picture.listed for picture in pictures if picture.listed)


def predict(data: bytes, facts: Exported, name: str, pictures: Sequence[Picture]) -> dict[int, np.ndarray | str]:
    """For each picture, by its number: (classes,) float32 probabilities, or why it cannot be read. Raises BadInput."""
    with without_chatter():
        import tensorflow as tf

        from orchestrator import export
        from orchestrator.dataset.stream import decoded

    model = export.load(data, name, str(facts.spec.get("model")))
    shape = (None, *facts.image_size, 3)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8)])
    def infer(pixels: tf.Tensor) -> tf.Tensor:
        return tf.cast(model(tf.cast(pixels, tf.float32) * facts.scale, training=False), tf.float32)

    encoded, found = _Encoded(pictures), {}
    for rows, what in decoded(encoded, len(pictures), facts.image_size, facts.resize, os.cpu_count() or 1):
        if isinstance(what, str):
            found[int(rows)] = encoded.failures.get(int(rows), what)
        else:
            found |= zip(rows.tolist(), export.both(infer(what).numpy()), strict=True)
    return found


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """What TensorFlow's libraries say as they are loaded, of processors and drivers, obeys no setting."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _print(found: Sequence[tuple[str, np.ndarray]], facts: Exported, format: Format) -> None:
    # as in training: of two classes, the second must be above one half
    says = [int(p[1] > 0.5) if len(p) == 2 else int(p.argmax()) for _, p in found]
    rows = [(path, facts.classes[i], float(p[i])) for i, (path, p) in zip(says, found, strict=True)]
    if format is Format.json:
        keys = ("path", "class", "probability")
        each = [dict(zip(facts.classes, p.tolist(), strict=True)) for _, p in found]
        trees = [dict(zip(keys, row, strict=True)) | {"probabilities": p} for row, p in zip(rows, each, strict=True)]
        print(json.dumps(trees, indent=1))
    elif format is Format.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([("path", "class", "probability"), *rows])
    elif rows:
        table = Table("path", "class", box=None, pad_edge=False, header_style="bold")
        table.add_column("probability", justify="right")
        for path, name, probability in rows:
            table.add_row(Text(path, overflow="fold"), Text(name), f"{probability:.4f}")
        console().print(table)


if __name__ == "__main__":
    run_command(main)
