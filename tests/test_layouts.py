"""layouts: how people lay out images, and what is made of it, from the smallest input that shows it."""

import csv
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from fake_s3 import FakeS3, Ways
from grids import grid
from images import class_folder, encoded, fill, parquet, picture, shard
from rich.console import Console

from orchestrator.data.index import Index
from orchestrator.data.indexing import build_index
from orchestrator.data.pack import pack
from orchestrator.errors import BadInput
from orchestrator.spec.sections import Data
from orchestrator.store import Store, open_store

PNG = encoded(picture(0, 4, 4))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "pets"), create=True)


def images(*folders: str, each: int = 5) -> dict[str, bytes]:
    """`each` different images in every folder."""
    return {
        f"{folder}/{i}.png": encoded(picture(1000 * number + i, 4, 4))
        for number, folder in enumerate(folders)
        for i in range(each)
    }


def index_of(store: Store, **settings: object) -> Index:
    return build_index(store, Data(uri=store.uri, **settings))


def counts(index: Index) -> dict[str, dict[str, int]]:
    """Class -> how many train, validate and test."""
    parts = {"train": index.trains(), "validate": index.validates(), "test": index.tests}
    found = {part: Counter(index.classes[label] for label in index.labels[rows]) for part, rows in parts.items()}
    return {name: {part: found[part][name] for part in parts if found[part][name]} for name in index.classes}


def table(rows: list[dict[str, object]], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0].keys(), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


CAT_AND_DOG = {"cat": {"train": 4, "validate": 1}, "dog": {"train": 4, "validate": 1}}
SPLIT = {"train": 5, "validate": 5, "test": 5}


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["cat", "dog"], CAT_AND_DOG),
        (["pets/cat", "pets/dog"], CAT_AND_DOG),
        (["a/pets/cat", "a/pets/dog"], CAT_AND_DOG),
        (["cat/outside", "cat/inside", "dog"], {"cat": {"train": 8, "validate": 2}, "dog": CAT_AND_DOG["dog"]}),
        ([f"{s}/{c}" for s in ("train", "val", "test") for c in ("cat", "dog")], {"cat": SPLIT, "dog": SPLIT}),
        (
            [f"{s}/{c}" for s in ("Training", "validation_set", "TEST-SET") for c in ("cat", "dog")],
            {"cat": SPLIT, "dog": SPLIT},
        ),
        (
            [f"pets/{s}/{c}" for s in ("train", "valid") for c in ("cat", "dog")],
            {"cat": {"train": 5, "validate": 5}, "dog": {"train": 5, "validate": 5}},
        ),
        (
            [f"{s}/{c}" for s in ("train", "test") for c in ("cat", "dog")],
            {"cat": {"train": 4, "validate": 1, "test": 5}, "dog": {"train": 4, "validate": 1, "test": 5}},
        ),
        (["train/cat", "train/dog"], CAT_AND_DOG),
        (["train", "plane", "ship"], {name: {"train": 4, "validate": 1} for name in ("plane", "ship", "train")}),
        (["2", "10"], {"2": {"train": 4, "validate": 1}, "10": {"train": 4, "validate": 1}}),
    ],
)
def test_folders(store: Store, folders: list[str], expected: dict[str, dict[str, int]]) -> None:
    """Classes, splits under the names that people use, one folder too many, and numbers in their order."""
    index = index_of(fill(store, images(*folders)))
    assert counts(index) == expected
    assert index.classes == tuple(expected)


@pytest.mark.parametrize(
    ("folders", "line"),
    [
        (
            ["train/cat", "train/dog", "misc/x"],
            "must hold splits or classes, got train beside misc: .* data.layout=classes",
        ),
        (["cat", "dog", "test"], "must hold splits or classes, got test beside cat, dog"),
        (["train", "test"], "<split>/<class>/<image>, got images right in test, train: have only"),
        (
            ["train/cat", "train/dog", "val/cat", "val/dog", "dev/cat", "dev/dog"],
            "one for each other split, got dev, train",
        ),
        (["val/cat", "val/dog", "test/cat", "test/dog"], "must hold a folder to train on"),
        (
            ["train/cat", "train/dog", "test/cat", "test/bird"],
            "'bird' .* at least one image for training, got none of its 5",
        ),
        (["cat", "Cat"], "differ in more than case and spaces, got 'Cat' and 'cat'"),
        (["cat", "cat "], "differ in more than case and spaces, got 'cat' and 'cat '"),
        (["train/Cat", "train/dog", "test/cat", "test/dog"], "got 'Cat' and 'cat'"),
        (["cat"], r"at least two classes, got one \(cat\)"),
        (["pets/cat"], r"at least two classes, got one \(cat\)"),
    ],
)
def test_what_may_be_two_things_is_refused(store: Store, folders: list[str], line: str) -> None:
    """One line that names both, and how to say which it is."""
    with pytest.raises(BadInput, match=line):
        index_of(fill(store, images(*folders)))


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (
            ["a/sea", "a/ice", "b/sea", "b/ice"],
            "which folders are classes, got ice, sea in a, b: say --set data.layo",
        ),
        (["cat", "dog", "we\\ird"], r"the class we\\ird of .* is left out \(we\\ird/: must hold no"),
        (["cat", "dog", "data.parquet"], "must hold Parquet shards or folders of classes, got data.parquet beside"),
        (
            ["cat", "dog", "labels.csv"],
            "a table of labels or folders of classes, got labels.csv beside folders: say --set dat",
        ),
    ],
)
def test_neither_guessed_nor_lost(store: Store, tmp_path: Path, files: list[str], line: str) -> None:
    """Folders that all hold the same ones, folders that not every store can hold, tables and shards beside classes."""
    for name in files:
        folder = tmp_path / "pets" / name
        (folder if "." not in name else folder.parent).mkdir(parents=True, exist_ok=True)
        for i in range(5 * ("." not in name)):
            (folder / f"{i}.png").write_bytes(encoded(picture(100 * len(name) + ord(name[-1]) + i, 4, 4)))
        if "." in name:
            folder.write_bytes(b"x")
    with pytest.raises(BadInput, match=line):
        index_of(store)


def test_a_dangling_link_to_a_class_or_a_shard_is_named(store: Store, tmp_path: Path) -> None:
    """As where a disk is not mounted, or a cache was copied without what its links lead to."""
    fill(store, images("cat", "dog"))
    (tmp_path / "pets" / "bird").symlink_to("/nowhere/bird")
    (tmp_path / "pets" / "loop").symlink_to("loop")
    with pytest.raises(BadInput, match=r"got 2 that are not: bird \(a link that leads nowhere\); loop \("):
        index_of(store)
    shards = fill(
        open_store(str(tmp_path / "shards"), create=True),
        {"train-00000-of-00002.parquet": shard([(f"{i}.png", PNG, i % 2) for i in range(10)], ["cat", "dog"])},
    )
    assert index_of(shards).notes == ("1 of 2 shards of train are here",)
    (tmp_path / "shards" / "train-00001-of-00002.parquet").symlink_to("../../blobs/x")
    with pytest.raises(BadInput, match=r"train-00001-of-00002.parquet .a link that leads nowhere"):
        index_of(shards)


def test_what_the_data_bring_is_not_drawn_again(store: Store) -> None:
    """Folds and a test set where images for validation come, groups that cross, a share that leaves nothing."""
    fill(store, images(*(f"{split}/{pet}" for split in ("train", "val") for pet in ("cat", "dog"))))
    with pytest.raises(
        BadInput, match=r"data.folds must be left out where the data come with images for validation, got 3"
    ):
        index_of(store, folds=3)
    with pytest.raises(BadInput, match=r"data.test_split must be 0 where the data come split, got 0.2"):
        index_of(store, test_split=0.2)
    (note,) = index_of(store, group_by="/([0-9])").notes
    assert note == "5 groups on several sides of the split that the data bring: 0, 1, 2, …"
    with pytest.raises(BadInput, match=r"data.test_split must leave images for a test, got none of 20"):
        index_of(fill(store, {}), layout="classes", test_split=0.01, split_by="order")


def test_splits_can_be_classes_after_all(store: Store) -> None:
    """Where somebody says so."""
    index = index_of(fill(store, images("train", "test")), layout="classes")
    assert counts(index) == {name: {"train": 4, "validate": 1} for name in ("test", "train")}


def test_litter_is_left_aside_and_counted(store: Store, tmp_path: Path) -> None:
    """What systems leave in folders is neither an image nor a bad one."""
    litter = [
        "cat/Thumbs.db",
        "dog/desktop.ini",
        "cat/@eaDir/0.png",
        "__MACOSX/cat/0.png",
        "cat_$folder$",
        "dog/~$x.png",
    ]
    fill(store, {**images("cat", "dog"), **dict.fromkeys(litter, PNG)})
    for name in ("Icon\r", ".DS_Store", "._0.png"):
        (tmp_path / "pets" / "cat" / name).write_bytes(PNG)
    index = index_of(store)
    assert counts(index) == CAT_AND_DOG
    assert index.bad == ()
    assert index.litter == len(litter) + 3 + 1, "and the lock of the store that wrote them"


def test_names_and_links_that_lead_nowhere_are_named(store: Store, tmp_path: Path) -> None:
    """They can be skipped, and the rest is listed."""
    fill(store, images("cat", "dog"))
    pets = tmp_path / "pets"
    (pets / "cat" / "gone.png").symlink_to("/nowhere/at/all.png")
    (pets / "cat" / "two\nlines.png").write_bytes(PNG)
    (pets / "dog" / "back\\slash.png").write_bytes(PNG)
    Path(os.fsdecode(bytes(pets / "dog") + b"/\xff.png")).write_bytes(PNG)
    with pytest.raises(BadInput, match=r"got 4 that are not: .*gone.png \(a link that leads nowhere\)"):
        index_of(store)
    index = index_of(store, on_bad_image="skip")
    assert counts(index) == CAT_AND_DOG
    assert len(index.bad) == 4
    json.dumps(index.bad).encode()  # as skipped.json holds them


def test_keys_that_only_a_bucket_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty part of a key is named, a console's marker of a folder is none, and the rest is listed."""
    with FakeS3(Ways()) as bucket:
        for name, value in bucket.env().items():
            monkeypatch.setenv(name, value)
        files = images("cat", "dog") | {"cat//x.png": PNG, "bird/": b"", ".thumbs/1.png": PNG}
        bucket.objects |= {f"pets/{key}": data for key, data in files.items()}
        store = open_store("s3://bucket/pets")
        with pytest.raises(BadInput, match=r'got 1 that is not: cat//x.png \(must not .* hold "//": rename it\)'):
            index_of(store)
        index = index_of(store, on_bad_image="skip")
    assert counts(index) == CAT_AND_DOG
    assert (index.litter, index.notes) == (1, ("empty: bird/",))


def test_nothing_vanishes_in_silence(store: Store, tmp_path: Path) -> None:
    """An empty folder of a class, and images beside the classes, are said."""
    fill(store, {**images("cat", "dog"), "stray.png": PNG})
    (tmp_path / "pets" / "bird").mkdir()
    notes = " ".join(index_of(store).notes)
    assert "empty: bird/" in notes
    assert "1 file beside the folders of classes" in notes


def test_a_class_that_is_left_out_as_a_whole_is_refused(store: Store) -> None:
    """Also where bad images may be skipped."""
    fill(store, {**images("cat", "dog"), "bird/1.psd": b"x", "bird/2.png": b""})
    with pytest.raises(
        BadInput, match=r"the class bird .* each of its 2 files is left out \(bird/1.psd: not an image file\)"
    ):
        index_of(store, on_bad_image="skip")


def test_one_class_in_two_ways_of_unicode(store: Store) -> None:
    """As when a folder was copied from a Mac: café and cafe´ are one."""
    index = index_of(fill(store, images("train/caf\u00e9", "train/dog", "test/cafe\u0301", "test/dog")))
    assert index.classes == ("caf\u00e9", "dog")


SPLIT = ("train", "test")
ROWS = [{"path": f"x/{pet}{i}.png", "label": pet} for pet in ("cat", "dog") for i in range(5)]
X = {row["path"]: encoded(picture(i, 4, 4)) for i, row in enumerate(ROWS)}
CASES = {
    "csv": ("labels.csv", table(ROWS)),
    "semicolons and a BOM": ("labels.csv", b"\xef\xbb\xbf" + table(ROWS, ";")),
    "tsv": ("labels.tsv", table(ROWS, "\t")),
    "json lines": ("labels.jsonl", b"\n".join(json.dumps(row).encode() for row in ROWS)),
    "parquet": ("labels.parquet", parquet(pa.Table.from_pylist(ROWS))),
    "dictionaries": (
        "labels.parquet",
        parquet(pa.table({name: pa.array([row[name] for row in ROWS]).dictionary_encode() for name in ROWS[0]})),
    ),
    "Hugging Face": ("metadata.csv", table([{"file_name": row["path"], "label": row["label"]} for row in ROWS])),
    "spaces in the header": ("labels.csv", table(ROWS).replace(b"path,label", b" Path, Label")),
    "another case": ("labels.csv", table([{**row, "path": row["path"].upper()} for row in ROWS])),
    "names alone": ("labels.csv", table([{"id": row["path"][2:-4], "class": row["label"]} for row in ROWS])),
    "Windows": ("labels.csv", table([{**row, "path": ".\\" + row["path"].replace("/", "\\")} for row in ROWS])),
}
CASES["Windows"] = ("labels.csv", CASES["Windows"][1].replace(b".\\", b"./"))


@pytest.mark.parametrize("case", CASES)
def test_a_table_of_labels(store: Store, case: str) -> None:
    """However it is written, and whatever its columns are called."""
    name, data = CASES[case]
    index = index_of(fill(store, {**X, name: data, "x/other.png": PNG}))
    assert counts(index) == CAT_AND_DOG
    assert any("1 image not in" in note for note in index.notes)


def test_a_table_in_each_split(store: Store) -> None:
    """As Hugging Face has it: each names the images beside it."""
    images = {
        f"{split}/{i}.png": encoded(picture(i + 50 * at, 4, 4)) for at, split in enumerate(SPLIT) for i in range(4)
    }
    tables = {
        f"{split}/metadata.csv": table([{"file_name": f"{i}.png", "label": ("cat", "dog")[i % 2]} for i in range(4)])
        for split in SPLIT
    }
    index = index_of(fill(store, images | tables))
    assert (index.what, index.given) == ("tables, test/metadata.csv and train/metadata.csv", (-1, 1))
    assert counts(index)["cat"] == counts(index)["dog"]


def test_a_table_with_splits_and_groups(store: Store) -> None:
    """Given splits are honoured, and what is drawn keeps a patient together; numbers are in their order."""
    rows = [
        {
            "path": row["path"],
            "label": number // 5 + 9,
            "split": "test" if number % 5 == 0 else "train",
            "group": number // 2,
        }
        for number, row in enumerate(ROWS)
    ]
    index = index_of(fill(store, {**X, "labels.csv": table(rows)}), validation_split=0.4)
    assert index.classes == ("9", "10")
    assert int(index.tests.sum()) == 2
    of_group: dict[int, set[int]] = {}
    for row, part in zip(rows, index.part.tolist(), strict=True):
        if row["split"] == "train":
            of_group.setdefault(int(row["group"]), set()).add(part)
    assert all(len(parts) == 1 for parts in of_group.values())


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (table([{"path": "x/cat0.png", "kind": "cat"}]), "must have a column label or class .*, got path, kind"),
        (
            table([{**row, "path": f"{row['path']}x"} for row in ROWS]),
            "10 that are not: x/cat0.pngx .in labels.csv, and there",
        ),
        (table([*ROWS, {"path": "x/cat0.png", "label": "dog"}]), "must name each image once, got x/cat0.png twice"),
        (table([{**row, "label": ""} for row in ROWS]), "a path and a label in every row, got none of one in row 1"),
        (table([{**row, "split": "later"} for row in ROWS]), "training, validation, test as splits, got 'later'"),
        (b"path,label\nx,y,z\n", "must be a table that can be read"),
        (b"path,label\n", "must hold at least one row"),
        (b"path,label,label\nx/cat0.png,cat,cat\n", "must have columns of different names, got label twice"),
        (b"path,label\n\xff\xfe,cat\n", "must be a table that can be read"),
    ],
)
def test_a_table_that_is_none(store: Store, data: bytes, line: str) -> None:
    """One line that names the table and what is wrong."""
    with pytest.raises(BadInput, match=line):
        index_of(fill(store, {**X, "labels.csv": data}), layout="table")


def test_shards_named_by_split(store: Store) -> None:
    """As Hugging Face publishes them; some named and some not is refused."""
    names = ["dog", "cat"]
    for split in ("train", "test"):
        rows = [(f"{split}{i}.png", PNG, i % 2) for i in range(10)]
        fill(store, {f"data/{split}-00000-of-00001.parquet": shard(rows, names)})
    index = index_of(store)
    assert index.classes == ("dog", "cat"), "in the order of their numbers"
    assert counts(index) == {name: {"train": 4, "validate": 1, "test": 5} for name in names}
    fill(store, {"data/more.parquet": shard([("m.png", PNG, 0)], names)})
    with pytest.raises(BadInput, match=r"got data/more.parquet beside data/test-00000"):
        index_of(store)


def test_packing_keeps_given_splits(store: Store, tmp_path: Path) -> None:
    """Shards are named by what their images came for, so that they are the same data set."""
    index = index_of(
        fill(store, images(*(f"{split}/{pet}" for split in ("train", "val", "test") for pet in ("cat", "dog"))))
    )
    packed = open_store(str(tmp_path / "packed"), create=True)
    pack(store, packed, 1, skip_bad=False, console=Console(file=io.StringIO()))
    again = index_of(packed)
    assert sorted(again.paths) == sorted(index.paths)
    parts = dict(zip(index.paths, index.part.tolist(), strict=True))
    assert dict(zip(again.paths, again.part.tolist(), strict=True)) == parts
    assert counts(again) == counts(index)


def test_the_same_picture_on_both_sides(store: Store) -> None:
    """It is said, dropped from where it trains, or refused."""
    files = images("cat", "dog", each=10)
    index = index_of(fill(store, files))
    validates = index.paths[int(index.validates().argmax())]
    fill(store, {"dog/again.png": files[validates]})
    index = index_of(store)
    (note,) = [note for note in index.notes if "two parts" in note]
    assert note.startswith(
        "1 picture in two parts of the split, 1 of them under another class: dog/again.png (training) is "
    )
    dropped = index_of(store, on_duplicate="drop")
    assert set(index.paths) - set(dropped.paths) == {"dog/again.png"}
    with pytest.raises(BadInput, match="no picture may stand in two parts of the split, got 1 picture"):
        index_of(store, on_duplicate="fail")


def test_a_copy_of_a_folder_is_the_same_data(store: Store, tmp_path: Path) -> None:
    """Bytes count, and not when they were written."""
    index = index_of(fill(store, images("cat", "dog")))
    shutil.copytree(tmp_path / "pets", tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.png"):
        os.utime(path, ns=(1, 1))
    assert index_of(open_store(str(tmp_path / "copy"))).digest == index.digest
    image = tmp_path / "pets" / "cat" / "0.png"
    before = image.stat()
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert index_of(store).digest != index.digest


def test_a_folder_that_holds_its_own_output(tmp_path: Path) -> None:
    """`--data .` with ./runs in it, the second time too; models and pictures there are not images of a class."""
    fill(open_store(str(tmp_path), create=True), class_folder({"cat": 6, "dog": 6}))
    words = ["--plan", "--data", ".", "--set", "grid={batch_size: [2]}", "--set", "data.image_size=16"]
    first = grid(*words, cwd=tmp_path)
    plan = json.dumps({"shared": {"data.rule": 2, "data.exif": "apply"}, "points": []})
    fill(open_store(str(tmp_path / "runs" / "shirts"), create=True), {"plan.json": plan.encode(), "models/a.png": PNG})
    assert grid(*words, cwd=tmp_path).stdout == first.stdout
    assert "12 of 2 classes (cat 5 + 1, dog 5 + 1)" in first.stdout
    refused = grid(*words, "--output", ".", "--name", "cat", cwd=tmp_path)
    assert refused.stderr.startswith("error: output must be a folder without images, got cat with cat/0000.png in it")
