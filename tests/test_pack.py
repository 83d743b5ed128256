"""pack: what goes where, the same data set before and after, and every way a pack may stop and go on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.index import Index
from orchestrator.data.indexing import build_index
from orchestrator.data.pack import MB, cut
from orchestrator.pack import main
from orchestrator.spec.sections import Data
from orchestrator.store import open_store

NAMES = ["größe 7/日本 😀.jpg", "größe 7/a b/c'd.PNG", "größe 7/a b.jpg", "größe 7/a.jpg", "größe 7/#1?.webp"]
NAMES += [f"tee/{number}.jpg" for number in (1, 10, 2, 21, 3)] + ["tee/sub/0.gif", "tee/Z.bmp", "tee/é.jpeg"]
BLOB_BYTES = 300_000  # three fit into a shard of 1 MB


def write_images(root: Path, names: list[str] = NAMES) -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(np.random.default_rng(i).bytes(BLOB_BYTES))
    return root


def pack(src: Path | str, dst: Path | str, shard_mb: int = 1, skip_bad: bool = False) -> None:
    main(str(src), str(dst), shard_mb=shard_mb, skip_bad=skip_bad)


def refused(capsys: pytest.CaptureFixture[str], *args: object, **options: bool) -> str:
    """Pack, which must end with status 2; returns its one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exited:
        pack(*args, **options)
    error = capsys.readouterr().err
    assert (exited.value.code, error.count("\n"), error[:7]) == (2, 1, "error: ")
    return error


def shards(dst: Path) -> dict[str, int]:
    """Every shard and when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(dst.glob("*.parquet"))}


def index(uri: Path | str, **options: object) -> Index:
    return build_index(open_store(str(uri)), Data(uri=str(uri), **options))


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_images(tmp_path / "src")


@given(st.lists(st.integers(0, 50)), st.integers(1, 60))
def test_a_cut_holds_all_in_order_within_the_limit(sizes: list[int], limit: int) -> None:
    """Every image is in exactly one run, in order; a run is above the limit only where it is one image."""
    runs = cut(sizes, limit)
    assert [i for run in runs for i in run] == list(range(len(sizes)))
    assert all(runs)
    assert all(len(run) == 1 or sum(sizes[i] for i in run) <= limit for run in runs)
    # and none could have taken the next one too
    assert all(sum(sizes[i] for i in run) + sizes[run.stop] > limit for run in runs[:-1])


@pytest.mark.parametrize("split_by", ["order", "hash"])
@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_shards_are_the_same_data_set(
    src: Path, tmp_path: Path, kind: str, split_by: str, request: pytest.FixtureRequest
) -> None:
    """Order, classes, labels and split come out as from the folder, and every image byte by byte."""
    dst = str(tmp_path / "dst") if kind == "folder" else request.getfixturevalue("bucket") + "/packed data"
    pack(src, dst)
    before, after = (index(uri, split_by=split_by, validation_split=0.4) for uri in (src, dst))
    assert after.packed
    assert after.paths == before.paths == sorted(NAMES, key=str.encode)
    assert after.classes == before.classes == ("größe 7", "tee")
    assert after.labels.tolist() == before.labels.tolist()
    assert after.part.tolist() == before.part.tolist()
    store = open_store(dst)
    tables = [pq.read_table(pa.BufferReader(store.read(shard.key))) for shard in after.objects]
    images = [image for table in tables for image in table["image"].to_pylist()]
    assert {image["path"]: image["bytes"] for image in images} == {name: (src / name).read_bytes() for name in NAMES}


def test_a_bucket_packs_like_a_folder(src: Path, tmp_path: Path, bucket: str) -> None:
    """Images in a bucket give the rows that the same images give from a folder."""
    for name in NAMES:
        open_store(bucket).write(name, (src / name).read_bytes())
    pack(src, tmp_path / "from folder")
    pack(bucket, tmp_path / "from bucket")
    assert list(shards(tmp_path / "from bucket")) == list(shards(tmp_path / "from folder"))
    for name in shards(tmp_path / "from folder"):
        assert pq.read_table(tmp_path / "from bucket" / name).equals(pq.read_table(tmp_path / "from folder" / name))


def test_the_layout_is_hugging_faces(src: Path, tmp_path: Path) -> None:
    """Names, schema and metadata are those that load_dataset("parquet") turns into Image and ClassLabel."""
    pack(src, tmp_path / "dst")
    assert list(shards(tmp_path / "dst")) == [f"shard-{i:05}-of-00005.parquet" for i in range(5)]
    file = tmp_path / "dst" / "shard-00001-of-00005.parquet"
    schema = pq.read_schema(file)
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert schema.field("label").type == pa.int64()
    assert json.loads(schema.metadata[b"huggingface"]) == {
        "info": {
            "features": {"image": {"_type": "Image"}, "label": {"names": ["größe 7", "tee"], "_type": "ClassLabel"}}
        }
    }
    frame = pd.read_parquet(file)
    assert frame.label.tolist() == [0, 0, 1]
    assert frame.image[0]["bytes"] == (src / frame.image[0]["path"]).read_bytes()


def test_images_are_stored_plain_in_groups_for_ranged_reads(tmp_path: Path) -> None:
    """Row groups of at most 8 MiB; no compression, and no statistics of image bytes."""
    src = write_images(tmp_path / "src", [f"{name}/{i:02}.jpg" for name in ("a", "b") for i in range(20)])
    pack(src, tmp_path / "dst", shard_mb=64)
    metadata = pq.read_metadata(tmp_path / "dst" / "shard-00000-of-00001.parquet")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [27, 13]
    for group in groups:
        columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
        assert {column.compression for column in columns.values()} == {"UNCOMPRESSED"}
        assert [name for name, column in columns.items() if column.is_stats_set] == ["image.path", "label"]


def test_a_killed_pack_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL after the first shard leaves whole shards alone; the next run keeps them and writes the others."""
    src = tmp_path / "src"
    for i in range(80):
        file = src / "ab"[i % 2] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"%d" % i)
        os.truncate(file, MB)  # a hole: large at no cost
    dst = tmp_path / "dst"
    command = [sys.executable, "-m", "orchestrator.pack", str(src), str(dst), "--shard-mb", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        next(line for line in process.stdout if line.startswith("shard-00000"))
        process.send_signal(signal.SIGKILL)
    before = shards(dst)
    assert 1 <= len(before) < 80
    assert all(pq.read_metadata(dst / name).num_rows == 1 for name in before)
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert f"{len(before)} already in" in again.stdout
    assert again.stdout.splitlines()[-1].endswith(f"python -m orchestrator.grid SPEC --data {dst}")
    assert before.items() <= shards(dst).items()
    assert index(dst).paths == index(src).paths


def test_an_interrupted_pack_names_the_command_that_goes_on(tmp_path: Path) -> None:
    """Ctrl-C ends with 130 and the same command."""
    src = write_images(tmp_path / "src", [f"{name}/{i}.jpg" for name in "ab" for i in range(200)])
    command = [sys.executable, "-m", "orchestrator.pack", str(src), str(tmp_path / "dst"), "--shard-mb", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        next(line for line in process.stdout if line.startswith("shard-00000"))
        process.send_signal(signal.SIGINT)
        last = process.stdout.read().splitlines()[-1]
    assert process.returncode == 130
    assert last == f"interrupted; to go on from here: python -m {' '.join(command[2:])}"


def test_only_what_is_missing_or_cut_off_is_written(src: Path, tmp_path: Path) -> None:
    """A shard that is gone, and one that another tool copied by half, are written again; the others stay."""
    pack(src, dst := tmp_path / "dst")
    before = shards(dst)
    gone, half, *others = before
    whole = (dst / half).read_bytes()
    (dst / gone).unlink()
    (dst / half).write_bytes(whole[:1000])
    pack(src, dst)
    assert list(shards(dst)) == list(before)
    assert {name: shards(dst)[name] for name in others} == {name: before[name] for name in others}
    assert (dst / half).read_bytes() == whole


def test_other_shards_are_refused(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Changed images, another --shard-mb and foreign Parquet: one line, and nothing is touched."""
    pack(src, dst := tmp_path / "dst")
    before = shards(dst)
    assert "got another shard-00000-of-00005.parquet" in refused(capsys, src, dst, 2)
    (src / NAMES[0]).write_bytes(b"mended")
    assert "must be empty or hold shards of the same images and --shard-mb" in refused(capsys, src, dst)
    assert shards(dst) == before
    (foreign := tmp_path / "foreign" / "x.parquet").parent.mkdir()
    pq.write_table(pa.table({"x": [1]}), foreign)
    assert "got another x.parquet" in refused(capsys, src, foreign.parent)


def test_a_changed_source_is_noticed_while_it_is_read(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image replaced between listing and reading is refused by name, and its shard is not written."""
    write = (store := type(open_store(str(src)))).write

    def replace_one(self: object, key: str, data: bytes) -> str:
        (src / "tee/é.jpeg").write_bytes(b"other")
        return write(self, key, data)

    monkeypatch.setattr(store, "write", replace_one)
    monkeypatch.setattr("orchestrator.store.interface.HELD_BYTES", 1)
    assert "tee/é.jpeg: must be as listed" in refused(capsys, src, tmp_path / "dst")
    assert len(shards(tmp_path / "dst")) == 4


def test_files_that_cannot_be_images(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are named, and refused or, with --skip-bad, left out as the grid would leave them out."""
    (src / "tee/empty.jpg").touch()
    (src / "tee/notes.txt").write_text("no image")
    (src / "readme.md").write_text("beside")
    error = refused(capsys, src, tmp_path / "dst")
    assert "tee/empty.jpg (empty); tee/notes.txt (not an image file)" in error
    assert error.endswith("or skip them with --skip-bad\n")
    pack(src, tmp_path / "dst", skip_bad=True)
    left_out = "left out: tee/empty.jpg (empty); tee/notes.txt (not an image file); 1 file beside the class folders"
    assert left_out in capsys.readouterr().out
    assert index(tmp_path / "dst").paths == index(src, on_bad_image="skip").paths == sorted(NAMES, key=str.encode)


def test_bad_input_is_one_line(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each says what it must be and what it was, and ends with status 2."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    dst = tmp_path / "dst"
    assert "must be a folder; there is none" in refused(capsys, tmp_path / "nowhere", dst)
    assert "must hold images as <class>/<image>" in refused(capsys, tmp_path / "empty", dst)
    assert "got Parquet shards in sample://shirts" in refused(capsys, "sample://shirts", dst)
    assert "DST must lie outside SRC" in refused(capsys, src, src)
    (tmp_path / "link").symlink_to(src)
    assert "DST must lie outside SRC" in refused(capsys, src, tmp_path / "link" / "packed")
    assert "write failed: Not a directory" in refused(capsys, src, tmp_path / "file" / "dst")
    assert "got another train.parquet in sample://shirts" in refused(capsys, src, "sample://shirts")
    assert not dst.exists()
    pack(src, tmp_path / "src beside")
