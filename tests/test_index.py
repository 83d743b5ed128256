"""index: what becomes an image, a class and a split, the digest, and what is refused."""

import io
import pickle
import random
import re
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from images import as_shards, class_folder, encoded, fill, parquet, picture, shard

from orchestrator.data.index import Index, describe_bad
from orchestrator.data.indexing import build_index
from orchestrator.errors import BadInput
from orchestrator.spec.sections import Data
from orchestrator.store import Aside, Object, Store, open_store
from orchestrator.store.folder import Folder

ODD_NAMES = ["a b.png", "a+b.png", "100%.png", "größe 日本 😀.png", "a#b?c=d&e.png"]


class Listing(Folder):
    """A store of these objects, of which only the listing can be had."""

    def __init__(self, objects: Iterable[Object]) -> None:
        super().__init__("listing", "/nowhere", read_only=True)
        self.objects = objects

    def list(self, prefix: str = "", aside: Aside | None = None) -> Iterator[Object]:
        yield from self.objects


class Shards(Listing):
    """The same, of shards that can be read."""

    def __init__(self, objects: Iterable[Object], data: dict[str, bytes]) -> None:
        super().__init__(objects)
        self.uri, self.data = "listing://", data

    def read_range(self, expected: Object, start: int, length: int) -> memoryview:
        return memoryview(self.data[expected.key])[start : start + length]


def listing(*keys: str) -> Listing:
    return Listing([Object(key, 100, "1") for key in keys])


def counted(counts: dict[str, int]) -> list[str]:
    return [f"{name}/{number:05}.jpg" for name, count in counts.items() for number in range(count)]


def index_of(store: Store, **settings: object) -> Index:
    return build_index(store, Data(uri="unused", **settings))


def validating(index: Index) -> list[str]:
    return [path for path, chosen in zip(index.paths, index.validates(), strict=True) if chosen]


def class_of(index: Index) -> dict[str, str]:
    return {path: index.classes[label] for path, label in zip(index.paths, index.labels, strict=True)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "images"), create=True)


class TestFolders:
    """<class>/<image>."""

    def test_classes_are_the_first_folders(self) -> None:
        """Sub-folders belong to their class; files beside the class folders are counted, not read."""
        keys = ["b/1.jpg", "a/deep/er/2.PNG", "a/3.jpeg", "b/4.webp", "README.md", "5.jpg"]
        index = index_of(listing(*keys), validation_split=0.5)
        assert index.classes == ("a", "b")
        assert class_of(index) == {"a/3.jpeg": "a", "a/deep/er/2.PNG": "a", "b/1.jpg": "b", "b/4.webp": "b"}
        assert index.ignored == 2
        assert index.bad == ()
        assert not index.packed

    def test_reading_order_is_that_of_the_keys(self) -> None:
        """However the store lists, the images come in UTF-8 byte order of their keys."""
        keys = [f"{name}/{image}" for name in ("z", "é", "a b", "a") for image in ("2.jpg", "10.jpg", "ü.jpg")]
        index = index_of(listing(*reversed(keys)), validation_split=0.4)
        assert index.paths == [o.key for o in index.objects] == sorted(keys, key=str.encode)

    @pytest.mark.parametrize("kind", ["folder", "bucket"])
    def test_odd_names(self, kind: str, store: Store, request: pytest.FixtureRequest) -> None:
        """Spaces, signs and Unicode in classes and names come through."""
        store = store if kind == "folder" else open_store(request.getfixturevalue("bucket") + "/my data")
        keys = {f"{name}/{image}" for name in ("T shirt", "größe+") for image in ODD_NAMES}
        fill(store, dict.fromkeys(keys, b"x"))
        index = index_of(store)
        assert set(index.paths) == keys
        assert index.classes == ("T shirt", "größe+")


class TestSplit:
    """Who validates."""

    def test_the_usual_figures(self) -> None:
        """4000 and 4005 images give the 6404 and 1601 that Keras gives."""
        index = index_of(listing(*counted({"shirt": 4000, "t-shirt": 4005})))
        assert int((~index.validates()).sum()) == 6404
        assert int(index.validates().sum()) == 1601

    @pytest.mark.parametrize("split", [0.2, 0.5, 0.35])
    def test_by_order_is_what_keras_does(self, store: Store, split: float) -> None:
        """Keras' flow_from_directory puts the same files on the same side, with the same labels."""
        from keras.src.legacy.preprocessing.image import ImageDataGenerator

        names = ["10.png", "2.png", "B.png", "a b.png", "ü.png", "deep/1.png", "deep/a.png", "d-x/1.png", "c/d/e.png"]
        tiny = encoded(picture(0, 2, 2))
        fill(store, {f"{name}/{image}": tiny for name in ("shirt", "T-shirt", "été") for image in names})
        store.write("été/one more.png", tiny)
        index = index_of(store, validation_split=split, split_by="order")
        generator = ImageDataGenerator(validation_split=split)
        for subset, paths in (("validation", set(validating(index))), ("training", None)):
            keras = generator.flow_from_directory(store.uri, subset=subset, shuffle=False, class_mode="sparse")
            assert set(keras.filenames) == (set(index.paths) - set(validating(index)) if paths is None else paths)
            assert tuple(keras.class_indices) == index.classes
            for path, label in zip(keras.filenames, keras.classes, strict=True):
                assert class_of(index)[path] == index.classes[label]

    def test_the_first_by_name_are_not_all_of_one_kind(self) -> None:
        """Files named by breed: each breed validates, and each class has exactly its share."""
        breeds = {"cat": ["abyssinian", "bengal", "siamese"], "dog": ["beagle", "boxer", "pug"]}
        keys = [f"{pet}/{breed}_{i:03}.jpg" for pet, own in breeds.items() for breed in own for i in range(100)]
        chosen = validating(index_of(listing(*keys)))
        assert [sum(key.startswith(pet) for key in chosen) for pet in breeds] == [60, 60]
        assert {key.split("/")[1].split("_")[0] for key in chosen} == {*breeds["cat"], *breeds["dog"]}

    def test_one_more_image_moves_few_others(self) -> None:
        """However many join one at a time, each join moves at most one image across, and a class keeps its share."""
        keys = counted({"a": 60, "b": 60})
        random.Random(0).shuffle(keys)
        before: set[str] = set()
        for count in range(80, 121):
            now = set(validating(index_of(listing(*keys[:count]))))
            assert len(before - now) <= 1
            assert len(now) >= count // 5 - 1
            before = now

    def test_runs_of_0_1_0_keep_their_split(self) -> None:
        """Their rule draws each image alone, so that growing data move none."""
        keys = counted({"a": 2000, "b": 2000})
        random.Random(0).shuffle(keys)
        older = {"split_by": "hash", "rule": 1}
        final = set(validating(index_of(listing(*keys), **older)))
        assert 0.17 * 4000 < len(final) < 0.23 * 4000
        for count in (200, 500, 1000):
            assert set(validating(index_of(listing(*keys[:count]), **older))) == final & set(keys[:count])

    def test_by_order_moves_images(self) -> None:
        """An image that sorts first pushes another across."""
        keys = counted({"a": 5, "b": 5})
        assert validating(index_of(listing(*keys), split_by="order")) == ["a/00000.jpg", "b/00000.jpg"]
        assert validating(index_of(listing(*keys, "a/!.jpg"), split_by="order")) == ["a/!.jpg", "b/00000.jpg"]

    @pytest.mark.parametrize("by", ["hash", "order"])
    def test_a_test_set_takes_none_of_those_that_validate(self, by: str) -> None:
        """Of each class its share, and the same images validate with and without one."""
        keys = counted({"a": 50, "b": 150})
        without, index = (index_of(listing(*keys), split_by=by, test_split=share) for share in (0.0, 0.1))
        assert validating(index) == validating(without)
        assert np.bincount(index.labels[index.tests]).tolist() == [5, 15]
        assert not (index.tests & (index.trains() | index.validates())).any()

    def test_every_image_validates_in_one_fold(self) -> None:
        """Folds share out each class evenly, and none of the images that only the winner sees."""
        index = index_of(listing(*counted({"a": 53, "b": 150})), folds=5, test_split=0.1)
        assert (
            np.stack([index.validates(fold) for fold in range(5)]).sum(0).tolist()
            == (~index.tests).astype(int).tolist()
        )
        for fold in range(5):
            counts = np.bincount(index.labels[index.validates(fold)])
            assert counts[0] in (9, 10)
            assert counts[1] == 27
            assert (index.trains(fold) == ~index.tests & ~index.validates(fold)).all()

    @pytest.mark.parametrize("settings", [{}, {"folds": 4}, {"test_split": 0.2}])
    def test_a_group_is_on_one_side(self, settings: dict[str, object]) -> None:
        """Frames of one video never both train and validate, and each class has about its share all the same."""
        sizes = {f"{pet}/v{video:02}": 3 + video % 7 for pet in ("cat", "dog") for video in range(30)}
        keys = [f"{video}_{frame:03}.jpg" for video, frames in sizes.items() for frame in range(frames)]
        index = index_of(listing(*keys), group_by="(v[0-9]+)_", **settings)
        parts: dict[str, set[int]] = {}
        for path, part in zip(index.paths, index.part.tolist(), strict=True):
            parts.setdefault(path.split("/")[1].split("_")[0], set()).add(part)
        assert all(len(own) == 1 for own in parts.values())
        share = 1 / index.folds if index.folds > 1 else 0.2
        for fold in range(index.folds):
            counts = np.bincount(index.labels[index.validates(fold)]) / np.bincount(index.labels)
            assert (abs(counts - share) < 0.06).all(), counts


class TestDigest:
    """The identity of the data."""

    OBJECTS = tuple(Object(key, 100 + i, f"v{i}") for i, key in enumerate(counted({"a": 5, "b": 5})))

    def digest(self, objects: list[Object], **settings: object) -> str:
        return index_of(Listing(objects), **settings).digest

    @pytest.mark.parametrize(
        "other",
        [
            Object("a/00009.jpg", 100, "v0"),
            Object("b/00000a.jpg", 100, "v0"),
            Object("a/00000.jpg", 101, "v0"),
            Object("a/00000.jpg", 100, "w0"),
        ],
        ids=["key", "label", "size", "version"],
    )
    def test_changes_with_the_data(self, other: Object) -> None:
        """Another key, label, size or version of one image is another data set."""
        changed = self.digest([other, *self.OBJECTS[1:]], validation_split=0.3)
        assert changed != self.digest(list(self.OBJECTS), validation_split=0.3)

    def test_changes_with_the_class_names_alone(self) -> None:
        """In shards a class may be renamed without touching path or number."""
        assert class_digest(["a", "b"]) != class_digest(["a", "c"])

    def test_does_not_change_with_what_is_not_data(self) -> None:
        """Listing order, split, pickling and files beside the classes leave it alone."""
        expected = self.digest(list(self.OBJECTS))
        assert self.digest(list(reversed(self.OBJECTS))) == expected
        assert self.digest(list(self.OBJECTS), validation_split=0.4) == expected
        assert self.digest([*self.OBJECTS, Object("README", 1, "1")]) == expected
        assert pickle.loads(pickle.dumps(index_of(Listing(list(self.OBJECTS))))).digest == expected


def class_digest(names: list[str]) -> str:
    class Fixed(Folder):
        def list(self, prefix: str = "", aside: Aside | None = None) -> Iterator[Object]:
            yield Object("x.parquet", len(data), "1")

        def read_range(self, expected: Object, start: int, length: int) -> bytes:
            return data[start : start + length]

    data = shard([(f"{i}.png", b"x", i % 2) for i in range(8)], names)
    return index_of(Fixed("fixed", "/nowhere"), validation_split=0.5).digest


class TestShards:
    """Parquet, in the columns of a Hugging Face image folder."""

    def test_the_same_images_as_folder_and_as_shards(self, store: Store, tmp_path: Path) -> None:
        """Packing changes neither split nor labels nor classes."""
        files = class_folder({"T shirt": 33, "été": 27, "shirt": 30}, 4, 4)
        packed = fill(open_store(str(tmp_path / "packed"), create=True), as_shards(files, 3))
        for split_by in ("order", "hash"):
            settings = {"split_by": split_by, "validation_split": 0.3}
            loose, index = index_of(fill(store, files), **settings), index_of(packed, **settings)
            assert index.packed
            assert index.classes == loose.classes
            assert class_of(index) == class_of(loose)
            assert set(validating(index)) == set(validating(loose))
        assert [o.key for o in index.objects] == sorted(as_shards(files, 3))

    def test_shards_are_read_in_the_order_of_their_rows(self) -> None:
        """Whatever their versions are: a row's image is that of its own shard."""
        data = {f"{i:02}.parquet": shard([(None, b"x", i % 2)] * 2, ["a", "b"]) for i in range(20)}
        for draw in range(40):
            objects = [Object(key, len(data[key]), f"{draw} {key}") for key in data]
            assert [o.key for o in index_of(Shards(objects, data)).objects] == sorted(data)

    def test_the_embedded_sample(self) -> None:
        """sample://shirts holds 600 images of each class, 120 of them to validate."""
        index = index_of(open_store("sample://shirts"))
        assert index.classes == ("shirt", "t-shirt")
        assert [int((index.labels == label).sum()) for label in (0, 1)] == [600, 600]
        assert [int((index.labels[index.validates()] == label).sum()) for label in (0, 1)] == [120, 120]
        assert index.paths[0] == "shirt/00000.png"
        assert index.ignored == 1, "its licence"

    @pytest.mark.parametrize(
        ("labels", "names", "classes"),
        [
            ([0, 1], ["cat", "dog"], ("cat", "dog")),
            ([1, 0], ["dog", "cat"], ("dog", "cat")),
            (["dog", "cat"], None, ("cat", "dog")),
            (["dog", "cat"], ["x", "y"], ("cat", "dog")),
            ([10, 2], None, ("2", "10")),
            ([0, 2], ["a", "b", "c"], ("a", "c")),
        ],
    )
    def test_labels(self, store: Store, labels: list, names: list[str] | None, classes: tuple[str, ...]) -> None:
        """Numbers take their names from the metadata where there are any, and stay in their order."""
        fill(store, {"x.parquet": shard([(f"{i}.png", b"x", labels[i % 2]) for i in range(8)], names)})
        index = index_of(store, validation_split=0.5)
        assert index.classes == classes
        title = {label: names[label] if names and isinstance(label, int) else str(label) for label in labels}
        assert class_of(index) == {f"{i}.png": title[labels[i % 2]] for i in range(8)}

    def test_each_shard_has_names_of_its_own(self, store: Store) -> None:
        """Two shards that number their classes differently still agree on the names."""
        rows = [(None, b"x", 0), (None, b"x", 1)] * 4
        fill(store, {"1.parquet": shard(rows, ["cat", "dog"]), "2.parquet": shard(rows, ["dog", "cat"])})
        index = index_of(store, validation_split=0.5)
        assert index.labels.tolist() == [0, 1] * 4 + [1, 0] * 4

    def test_repeated_and_missing_names(self, store: Store) -> None:
        """Where two shards name an image alike, or none at all, shard and row tell them apart."""
        rows = [(f"{i}.png", b"x", i % 2) for i in range(6)]
        fill(store, {"1.parquet": shard(rows), "2.parquet": shard(rows)})
        index = index_of(store, validation_split=0.5)
        assert len(set(index.paths)) == 12
        assert index.paths[7] == "2.parquet#00000001"
        fill(store, {"2.parquet": shard([(None, b"x", i % 2) for i in range(6)])})
        assert index_of(store, validation_split=0.5).paths[5:7] == ["5.png", "2.parquet#00000000"]

    @pytest.mark.parametrize(
        ("data", "line"),
        [
            (b"", "1.parquet must be a Parquet file"),
            (b"PAR1" + bytes(100) + b"PAR1", "1.parquet must be a Parquet file"),
            (encoded(picture(0)), "1.parquet must be a Parquet file"),
            (parquet(pa.table({"image": [1], "other": [2]})), "columns image and label, got image, other"),
            (parquet(pa.table({"image": [b"x"], "label": [0]})), "column image must be a struct .* got binary"),
            (parquet(pa.table({"image": [{"bytes": "x"}], "label": [0]})), "must be a struct of bytes .binary."),
            (parquet(pa.table({"image": [{"path": "x"}], "label": [0]})), "column image must be a struct"),
            (parquet(pa.table({"image": [{"bytes": b"x"}], "label": [0.5]})), "whole numbers or strings, got double"),
            (shard([("0.png", b"x", 0), ("1.png", b"x", None)]), r"must have a label, got null in row 1 \(1.png\)"),
            (shard([("0.png", b"x", -1)], ["a", "b"]), "from 0 to 1, .* got -1 in row 0"),
            (shard([("0.png", b"x", 0)]), r"at least two classes, got one \(0\)"),
            (shard([]), "must hold images as .* Parquet shards"),
        ],
    )
    def test_refuses_what_is_none(self, store: Store, data: bytes, line: str) -> None:
        """What cannot be a shard is refused by name, with what it must be."""
        fill(store, {"1.parquet": data})
        with pytest.raises(BadInput, match=line):
            index_of(store)

    def test_image_without_a_path_field(self, store: Store) -> None:
        """bytes alone are enough."""
        table = pa.table({"image": [{"bytes": b"x"}] * 4, "label": ["a", "b"] * 2})
        assert len(index_of(fill(store, {"1.parquet": parquet(table)}), validation_split=0.5)) == 4


class TestBadInput:
    """What does not make a data set."""

    @pytest.mark.parametrize(
        ("keys", "line"),
        [
            ([], "must hold images as <class>/<image> or Parquet shards, got 0 other objects: check data.uri"),
            (["1.jpg"], "got 1 other object: check data.uri"),
            (counted({"cat": 5}), r"at least two classes, got one \(cat\)"),
            (counted({"cat": 5, "dog": 1}), "'dog' .* at least one image for training, got none of its 1"),
        ],
    )
    def test_refuses(self, keys: list[str], line: str) -> None:
        """No images, one class, or a class with nothing on one side."""
        with pytest.raises(BadInput, match=line):
            index_of(listing(*keys))

    def test_a_class_without_training_images(self) -> None:
        """By hash a small class may lie on one side as a whole."""
        with pytest.raises(BadInput, match=r"'b' .* at least one image for training, got none of its 1"):
            index_of(listing(*counted({"a": 500, "b": 1})), split_by="hash", validation_split=0.95, rule=1)

    def test_names_the_first_ten_bad_files(self) -> None:
        """Ten by name and reason, the rest by number, and how to go on without them."""
        store = listing(*counted({"cat": 5, "dog": 5}), *(f"cat/{i:02}.txt" for i in range(11)))
        store.objects.append(Object("dog/empty.jpg", 0, "1"))
        with pytest.raises(BadInput) as caught:
            index_of(store)
        line = str(caught.value)
        assert re.findall(r"cat/(\d\d).txt \(not an image file\)", line) == [f"{i:02}" for i in range(10)]
        assert "got 12 that are not" in line
        assert "; and 2 more. " in line
        assert line.endswith("or skip them with --set data.on_bad_image=skip")
        assert "got 1 that is not: a (b). " in describe_bad([("a", "b")])

    def test_skips_them_when_told_to(self) -> None:
        """They are listed with their reason and are in no part."""
        store = listing(*counted({"cat": 5, "dog": 5}), "cat/notes.txt")
        store.objects.append(Object("dog/empty.jpg", 0, "1"))
        index = index_of(store, on_bad_image="skip")
        reason = "not an image file"
        assert index.bad == (("cat/notes.txt", reason), ("dog/empty.jpg", "empty"))
        assert len(index) == 10
        assert index.classes == ("cat", "dog")


def test_a_hundred_thousand_images() -> None:
    """The index of a large data set is made in seconds and is small enough to send to every worker."""
    objects = [Object(key, 34_000 + i, f"{i:032x}") for i, key in enumerate(counted({"a": 50_000, "b": 50_000}))]
    started = time.perf_counter()
    index = index_of(Listing(objects))
    assert index.digest
    took_s = time.perf_counter() - started
    sink = io.BytesIO()
    pickle.dump(index, sink)
    print(f"\n100,000 images: {took_s:.2f} s, {len(sink.getvalue()) / 1e6:.1f} MB pickled")
    assert took_s < 10
    assert len(sink.getvalue()) < 15e6


def test_a_large_index_is_small():
    """Of 100,000 images, it and what building it takes: it goes to every node, and is kept by every driver."""
    keys = (f"class-{i % 10}/photo-{i:012d}-of-some-length.jpg" for i in range(10**5))
    listing = Listing(Object(key, 20_000, f"{i:032x}") for i, key in enumerate(keys))
    tracemalloc.start()
    index = index_of(listing)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6, "Python's own: pages of the listing, not the whole of it"
    buffers: list[pickle.PickleBuffer] = []
    size = len(pickle.dumps(index, protocol=5, buffer_callback=buffers.append))
    assert size + sum(len(buffer.raw()) for buffer in buffers) < 20e6
