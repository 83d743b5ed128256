"""Inference: what a trained model says of images that it has not seen."""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from orchestrator.data.index import IMAGE_SUFFIXES
from orchestrator.errors import BadInput
from orchestrator.run.folder import BEST
from orchestrator.run.result import Exported
from orchestrator.store import Missing, Object, Store, StoreError, open_store
from orchestrator.terminal import without_stderr
from orchestrator.train.model import class_probabilities


@dataclass(frozen=True)
class Picture:
    """One image to classify.

    Attributes:
        path: What the person asked for.
        listed: How its folder lists it; None where the image itself was named.
    """

    path: str
    store: Store
    key: str
    listed: Object | None = None


def classify(model: str, images: Sequence[str]) -> tuple[Exported, list[tuple[str, np.ndarray]], dict[str, str]]:
    """Let a model say what is on these images.

    model: a run folder, or a .keras file beside its .json. images: files and folders; s3:// as well.
    Returns what stands beside the model; path and (classes,) probabilities of each image; and path -> why it could not
    be read. Raises BadInput.
    """
    data, facts, name = read_model(model)
    pictures, failures = find_pictures(images)
    found = predict(data, facts, name, pictures) if pictures else {}
    failures |= {pictures[i].path: what for i, what in found.items() if isinstance(what, str)}
    return facts, [(pictures[i].path, p) for i, p in sorted(found.items()) if not isinstance(p, str)], failures


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
    """The pictures as data.stream reads them; one that cannot be read is empty, with its reason in failures."""

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
    with without_stderr():
        import tensorflow as tf

        from orchestrator.data.stream import decoded
        from orchestrator.train.model_file import load

    model = load(data, name, str(facts.spec.get("model")))

    def infer(pixels: tf.Tensor) -> tf.Tensor:
        return tf.cast(model(tf.cast(pixels, tf.float32) * facts.scale, training=False), tf.float32)

    infer_in_graph = tf.function(infer, input_signature=[tf.TensorSpec((None, *facts.image_size, 3), tf.uint8)])
    encoded = _Encoded(pictures)
    found: dict[int, np.ndarray | str] = {}
    for rows, what in decoded(encoded, len(pictures), facts.image_size, facts.resize, os.cpu_count() or 1):
        if isinstance(what, str) or isinstance(rows, int):
            found[int(rows)] = encoded.failures.get(int(rows), str(what))
        else:
            found |= zip(rows.tolist(), class_probabilities(infer_in_graph(what).numpy()), strict=True)
    return found
