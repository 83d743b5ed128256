"""Inference: what a trained model says of images that it has not seen."""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from orchestrator import machine
from orchestrator.data.indexing import find_labelled_images
from orchestrator.data.layout import IMAGE_SUFFIXES, WHOLE_OBJECT
from orchestrator.data.listing import list_objects, objects_of
from orchestrator.errors import BadInput
from orchestrator.runs.folder import BEST
from orchestrator.runs.result import Exported
from orchestrator.store import Missing, Object, Store, StoreError, open_store
from orchestrator.terminal import without_stderr
from orchestrator.train.model import class_probabilities
from orchestrator.words import plural

_NAMED = 3  # files or classes that a line names


@dataclass(frozen=True)
class Picture:
    """One image to classify.

    Attributes:
        path: What the person asked for.
        listed: How its folder lists it; None where the image itself was named.
        label: Its class; None where that is not known.
    """

    path: str
    store: Store
    key: str
    listed: Object | None = None
    label: str | None = None


@dataclass(frozen=True)
class Found:
    """What there is to classify.

    Attributes:
        failures: What was asked for and cannot be read -> why.
        notes: What else was left out, a line for each folder.
    """

    pictures: list[Picture]
    failures: dict[str, str]
    notes: list[str]


@dataclass(frozen=True)
class Classified:
    """What a model says of images.

    Attributes:
        facts: What stands beside the model.
        said: Path and (classes,) probabilities of each image.
        labels: The class of each of these images; empty where nobody asked for it.
        failures, notes: See Found.
    """

    facts: Exported
    said: list[tuple[str, np.ndarray]]
    labels: list[str]
    failures: dict[str, str]
    notes: list[str]


def classify(model: str, images: Sequence[str], labelled: bool = False) -> Classified:
    """Let a model say what is on these images.

    model: a run folder, or a .keras file beside its .json. images: files and folders; s3:// as well. labelled: they are
    folders that are laid out as training data are. Raises BadInput.
    """
    data, facts, name = read_model(model)
    found = find_labelled(images, facts.classes) if labelled else find_pictures(images)
    says = predict(data, facts, name, found.pictures) if found.pictures else {}
    unreadable = {found.pictures[i].path: what for i, what in says.items() if isinstance(what, str)}
    read = [(found.pictures[i], what) for i, what in sorted(says.items()) if not isinstance(what, str)]
    labels = [picture.label for picture, _ in read if picture.label is not None]
    said = [(picture.path, what) for picture, what in read]
    return Classified(facts, said, labels, {**found.failures, **unreadable}, found.notes)


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


def find_pictures(uris: Sequence[str]) -> Found:
    """Every image that is named, or lies below a folder or prefix that is; and what is none, with the reason."""
    found = Found([], {}, [])
    for uri in uris:
        before = len(found.pictures)
        try:
            _find_below(uri, found)
        except BadInput as error:
            found.failures[uri] = str(error)
            continue
        if len(found.pictures) == before:
            found.failures[uri] = f"holds no image ({', '.join(IMAGE_SUFFIXES)})"
    return found


def _find_below(uri: str, found: Found) -> None:
    folder, name = os.path.split(uri)
    if os.path.isfile(uri):
        found.pictures.append(Picture(uri, open_store(folder or "."), name))
        return
    if "://" not in uri and not os.path.exists(uri):
        raise BadInput("there is no such file or folder")
    store = open_store(uri)
    listing = list_objects(store)
    objects = objects_of(listing.objects)
    images = [o for o in objects if o.key.lower().endswith(IMAGE_SUFFIXES)]
    if not images and "://" in uri and name and not folder.endswith(":/"):
        above = open_store(folder)
        if above.exists(name):
            found.pictures.append(Picture(uri, above, name))
    found.pictures.extend(Picture(_path(uri, o.key), store, o.key, o) for o in images)
    lost = {key: reason for key, reason in listing.bad if key.lower().endswith((*IMAGE_SUFFIXES, "/"))}
    found.failures.update({_path(uri, key): reason for key, reason in lost.items()})
    others = [o.key for o in objects if not o.key.lower().endswith(IMAGE_SUFFIXES)]
    others += [key for key, _ in listing.bad if key not in lost]
    found.notes.extend(_say_left_out(uri, others, "not an image by name"))


def find_labelled(uris: Sequence[str], classes: Sequence[str]) -> Found:
    """Every image of folders that are laid out as training data are, with its class. Raises BadInput.

    classes: those that the model knows; images of others are left out.
    """
    found = Found([], {}, [])
    for uri in uris:
        store = open_store(uri)
        laid_out = find_labelled_images(store)
        if any(row != WHOLE_OBJECT for row in laid_out.images["row"].to_pylist()):
            raise BadInput(f"--labelled must have images as single files, got Parquet shards in {uri}: name a folder")
        labels = laid_out.images["name"].to_pylist()
        pairs = [*zip(objects_of(laid_out.images), labels, strict=True)]
        known = [Picture(_path(uri, o.key), store, o.key, o, name) for o, name in pairs if name in classes]
        if not known:
            raise BadInput(
                f"--labelled must have images of the model's classes ({', '.join(classes)}), got "
                f"{', '.join(sorted(set(labels))[:_NAMED]) or 'none'} in {uri}: rename the folders, or check the table"
            )
        found.pictures.extend(known)
        found.failures.update({_path(uri, key): reason for key, reason in laid_out.bad})
        strange = [o.key for o, name in pairs if name not in classes]
        found.notes.extend(_say_left_out(uri, strange, "of classes that the model does not know"))
        found.notes.extend(f"{uri}: {note}" for note in laid_out.notes)
    return found


def _path(uri: str, key: str) -> str:
    return f"{uri.rstrip('/')}/{key}"


def _say_left_out(uri: str, keys: Sequence[str], why: str) -> list[str]:
    if not keys:
        return []
    more = f" and {len(keys) - _NAMED:,} more" if len(keys) > _NAMED else ""
    return [f"{uri}: {plural(len(keys), 'file')} left out, {why}: {', '.join(keys[:_NAMED])}{more}"]


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

        from orchestrator.train.model_file import load

    model = load(data, name, facts.model)

    def infer(pixels: tf.Tensor) -> tf.Tensor:
        return tf.cast(model(tf.cast(pixels, tf.float32) * facts.scale, training=False), tf.float32)

    infer_in_graph = tf.function(infer, input_signature=[tf.TensorSpec((None, *facts.image_size, 3), tf.uint8)])
    found: dict[int, np.ndarray | str] = {}
    for rows, what in _decoded(facts, pictures):
        says = what if isinstance(what, str) else class_probabilities(infer_in_graph(what).numpy())
        found |= zip(rows, [says] if isinstance(says, str) else says, strict=True)
    return found


def prepare(facts: Exported, pictures: Sequence[Picture]) -> np.ndarray:
    """(n, height, width, 3) float32 in [0, 1]: the pictures as the model takes them. Raises BadInput."""
    pixels = np.zeros((len(pictures), *facts.image_size, 3), np.uint8)
    for rows, what in _decoded(facts, pictures):
        if isinstance(what, str):
            raise BadInput(f"{pictures[rows[0]].path} must be an image that can be read: {what}")
        pixels[rows] = what
    return pixels * np.float32(facts.scale)


def _decoded(facts: Exported, pictures: Sequence[Picture]) -> Iterator[tuple[list[int], np.ndarray | str]]:
    """Numbers of pictures, and their pixels, (batch, height, width, 3) uint8; of one, why it cannot be read."""
    with without_stderr():
        from orchestrator.data.stream import decoded

    encoded = _Encoded(pictures)
    exif = facts.spec.get("data", {}).get("exif", "ignore")  # models from before there was a choice took none
    for rows, what in decoded(encoded, len(pictures), facts.image_size, facts.resize, machine.cpus(), exif):
        if isinstance(what, str) or isinstance(rows, int):
            yield [int(rows)], encoded.failures.get(int(rows), str(what))
        else:
            yield rows.tolist(), what
