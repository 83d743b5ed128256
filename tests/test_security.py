"""Security: what a run folder, a spec or a bucket holds is data. It is read or refused; it never runs or hangs."""

import ast
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import as_shards, class_folder, fill

from orchestrator import leaderboard
from orchestrator.board.table import COLUMNS
from orchestrator.data import unpacking
from orchestrator.data.arrays import Wanted
from orchestrator.data.arrays import _open as open_cache_folder
from orchestrator.data.indexing import build_index
from orchestrator.data.shards import row_groups
from orchestrator.data.stream import Encoded
from orchestrator.display.opening import read_board
from orchestrator.errors import BadInput
from orchestrator.runs.folder import Run
from orchestrator.runs.lease import _is_gone, _read
from orchestrator.spec.reading import load_spec
from orchestrator.spec.sections import Data
from orchestrator.store import open_store

PACKAGE = Path(leaderboard.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
FUZZ = settings(suppress_health_check=list(HealthCheck), max_examples=60, deadline=None)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_room_can_run_what_it_reads(path: Path):
    """No pickle, eval, shell, print past the terminal, Keras file outside safe mode, or YAML but the safe loader's."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"} & {n.split(".")[0] for n in names}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if path.stem not in ("errors", "terminal") and "sample" not in path.parts:
                assert called not in ("print", "sys.stdout.write", "sys.stderr.write"), (
                    "terminal.py cleans what it prints"
                )
            assert called not in ("eval", "exec", "os.system", "yaml.unsafe_load", "yaml.full_load", "compile")
            assert called != "yaml.load" or ast.unparse(node.args[1]) == "_Loader", "a yaml.SafeLoader, see spec.py"
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                assert (keyword.arg, value) not in [("allow_pickle", "True"), ("safe_mode", "False"), ("shell", "True")]


class Trap:
    """Pickled, it writes a file where it is read back."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.mark),)


def checkpoint(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_no_pickle_in_a_run_folder_is_read(tmp_path: Path):
    """Put in the place of each file of a run, it is damage; and so is a checkpoint whose arrays hold objects."""
    mark, folder = tmp_path / "ran", tmp_path / "run"
    trap = pickle.dumps(Trap(mark))
    run = Run(open_store(str(folder), create=True))
    for key in ("plan.json", "trials/a-1.json", "checkpoints/a.npz", "leaderboard.parquet", "owner.json"):
        run.store.write(key, trap)
    assert run.read_plan() is None
    assert run.read_results() == {}
    with pytest.raises(BadInput):
        read_board(str(folder))
    assert _read(run.store)[0] == {}
    objects = np.empty(1, object)
    objects[0] = Trap(mark)
    code = "import sys; from orchestrator.train.checkpoint import read_arrays; read_arrays(sys.stdin.buffer.read())"
    for data in (trap, checkpoint(far=objects)):
        read = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False)
        assert read.returncode == 1
        assert b"ValueError" in read.stderr or b"BadZipFile" in read.stderr
    assert not mark.exists()


def test_a_checkpoint_that_would_unpack_to_more_is_refused():
    """A compressed one, of which a thousandth may be enough to fill the memory; ours are not compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("far.npy", bytes(10**7))
    code = "import sys; from orchestrator.train.checkpoint import read_arrays; read_arrays(sys.stdin.buffer.read())"
    read = subprocess.run([sys.executable, "-c", code], input=buffer.getvalue(), capture_output=True, check=False)
    assert b"ValueError: it is compressed, which ours are not" in read.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="tells listeners by /proc, which is Linux'")
def test_ray_on_a_laptop_listens_on_loopback_alone(tmp_path: Path):
    """Nobody on the same network reaches the Ray of this machine alone; it asks for a token, and has no idle parts."""
    code = """
import json, os
from pathlib import Path
from orchestrator.cluster.connect import connect
from orchestrator.spec.sections import Resources

def listeners(pid):
    links = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]

def marked(pid):
    try:
        return os.environb[b"ORCHESTRATOR_TEST_MARK"] in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False

with connect(Resources()):
    here = [p.name for p in Path("/proc").iterdir() if p.name.isdecimal() and marked(p.name)]
    found = [address for pid in here for address in listeners(pid)]
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in here]
print(json.dumps([found, commands, os.environ.get("RAY_AUTH_MODE")]))
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env["ORCHESTRATOR_TEST_MARK"] = os.urandom(8).hex()
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, text=True, capture_output=True, check=True
    )
    addresses, commands, mode = json.loads(ran.stdout.splitlines()[-1])
    assert len(addresses) >= 4
    assert any("raylet" in command for command in commands)
    idle = ("dashboard.py", "monitor.py", "dashboard/agent.py", "agent/main.py", "ray::DashboardAgent")
    assert not any(name in command for command in commands for name in idle)
    assert set(addresses) <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert mode == "token"


def test_a_spec_runs_no_code(tmp_path: Path):
    """YAML tags are refused, and a model's name is no way to a built-in or to another file."""
    for text in ("!!python/object/apply:os.mkdir [ran]", "name: !!python/name:os.system ''", "data: !!binary aGk="):
        with pytest.raises(BadInput, match="has no place here"):
            load_spec(text)
    for name in ("os.path:../x", "os;system", "__import__('os'):system", "../evil:f", "a:b:c", "os:"):
        with pytest.raises(BadInput, match="model must be"):
            load_spec(f"name: a\ndata: {{uri: x}}\ngrid: {{epochs: [1]}}\nmodel: {json.dumps(name)}")


GOOD = "name: a\ndata: {uri: x}\ngrid: {epochs: [1, 2], batch_size: [4]}\nseeds: [0]\ntrain: {learning_rate: 0.1}\n"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def mutated(good: bytes) -> st.SearchStrategy[bytes]:
    """The good bytes, cut, or with some of them replaced or repeated."""

    @st.composite
    def draw_one(draw: st.DrawFn) -> bytes:
        data = bytearray(good)
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, len(data) - 1))
            length = draw(st.integers(0, 8))
            data[at : at + length] = draw(st.binary(max_size=8)) * draw(st.sampled_from([1, 1, 50]))
            data = data or bytearray(b" ")
        return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])

    return draw_one() | st.binary(max_size=60)


def takes_or_tells(call: Callable[[], object]) -> None:
    """It returns, or tells in one line why not."""
    line = ""
    try:
        call()
    except BadInput as error:
        line = str(error)
    assert "\n" not in line
    assert len(line) < 1000


BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))])
HOSTILE = [
    BOMB,
    BOMB + "\nname: *a39",
    "[" * 5000,
    "{a: " * 5000,
    "- " * 5000,
    "a: " + "9" * 10_000,
    "&a [*a]",
    "? " * 999,
]


@FUZZ
@given(mutated(GOOD.encode()) | st.sampled_from([text.encode() for text in HOSTILE]), st.text(max_size=20))
def test_any_text_is_a_spec_or_one_line(data: bytes, override: str):
    """The spec loader never fails otherwise, and never takes long."""
    text = data.decode("utf-8", "replace")
    for overrides in ((), (f"train.epochs={override}",), (override,)):
        takes_or_tells(lambda overrides=overrides: load_spec(text, overrides))


SHARDS = as_shards(class_folder({"cat": 4, "dog": 4}, 8, 8), 1)


@FUZZ
@given(mutated(next(iter(SHARDS.values()))))
def test_any_bytes_in_a_shard_are_images_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    """The index of a damaged shard is whole, or the shard is named."""
    folder = tmp_path_factory.mktemp("shard")
    (folder / "a.parquet").write_bytes(data)
    store = open_store(str(folder))
    data_spec = Data(uri="x", validation_split=0.5)
    takes_or_tells(lambda: row_groups(build_index(store, data_spec).objects, store))


def test_a_shard_with_a_name_that_is_not_unicode_is_one_line(tmp_path: Path):
    """That of a column, which Arrow does not read."""
    (tmp_path / "a.parquet").write_bytes(next(iter(SHARDS.values())).replace(b"label", b"l\xffbel"))
    with pytest.raises(BadInput, match=r"a\.parquet must be a Parquet file"):
        build_index(open_store(str(tmp_path)), Data(uri="x"))


def test_a_shard_that_would_unpack_to_a_memory_full_is_refused(tmp_path: Path):
    """A million equal rows fit into some kilobytes: it is refused by its footer, before a column is read."""
    rows = 10**6
    images = pa.StructArray.from_arrays([pa.nulls(rows, pa.binary()), pa.nulls(rows, pa.string())], ["bytes", "path"])
    labels = pa.array(["cat"]).take(pa.array(np.zeros(rows, np.int64)))
    pa.parquet.write_table(pa.table({"image": images, "label": labels}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 10_000
    with pytest.raises(BadInput, match=r"bomb\.parquet must have fewer rows than bytes"):
        build_index(open_store(str(tmp_path)), Data(uri="x"))


def shard_of(file: Path, images: pa.Array, **options: object) -> None:
    """A shard of one class each for even and odd rows."""
    images = pa.StructArray.from_arrays([images, pa.nulls(len(images), pa.string())], ["bytes", "path"])
    labels = pa.array(["cat", "dog"] * (len(images) // 2))
    pa.parquet.write_table(pa.table({"image": images, "label": labels}), file, compression="zstd", **options)


def test_shards_that_unpack_to_much_are_held_one_row_group_at_a_time(tmp_path: Path):
    """Some kilobytes of zeros that are 400 MB: what is held counts as it is unpacked."""
    zeros = pa.array([bytes(16 * 10**6)] * 24, pa.large_binary())
    shard_of(tmp_path / "a.parquet", zeros, row_group_size=4, use_dictionary=False)
    del zeros
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    store, before = open_store(str(tmp_path)), pa.total_allocated_bytes()
    encoded = Encoded(build_index(store, Data(uri="x", validation_split=0.5)), store)
    rows = np.random.default_rng(0).permutation(24)
    held = [(len(blob), pa.total_allocated_bytes() - before) for blob in encoded.blobs(rows)]
    assert {size for size, _ in held} == {16 * 10**6}
    assert max(size for _, size in held) < 150 * 10**6


@pytest.mark.parametrize("column", ["bytes", "path", "label"])
def test_a_shard_whose_equal_rows_would_fill_the_memory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
):
    """They are in the file once, and its footer says nothing of the memory that they take."""
    monkeypatch.setattr(unpacking, "MOST_BYTES", 4 * 10**7)
    monkeypatch.setattr(unpacking, "_PIECE_BYTES", 10**7)
    once = pa.array([np.random.default_rng(0).bytes(5 * 10**5).hex()])
    columns = {"bytes": pa.array(["x", "y"] * 1000), "path": pa.nulls(2000, pa.string())}
    columns |= {"label": columns["bytes"], column: pa.DictionaryArray.from_arrays(pa.array([0] * 2000), once)}
    parts = [columns["path"], columns["bytes"].cast(pa.dictionary(pa.int64(), pa.binary()))]
    images = pa.StructArray.from_arrays(parts, ["path", "bytes"])
    table, file = pa.table({"image": images, "label": columns["label"]}), tmp_path / "a.parquet"
    pa.parquet.write_table(table, file, store_schema=False, dictionary_pagesize_limit=10**8)
    store, before = open_store(str(tmp_path)), pa.default_memory_pool().max_memory()
    must = r"a\.parquet must be a Parquet file.* it unpacks to more than 0 GB"
    if column == "bytes":
        encoded = Encoded(build_index(store, Data(uri="x", validation_split=0.5)), store)
        with pytest.raises(BadInput, match=must):
            next(encoded.blobs(np.arange(2000)))
    else:
        with pytest.raises(BadInput, match=must):
            build_index(store, Data(uri="x", validation_split=0.5))
    assert pa.default_memory_pool().max_memory() - before < 10**9


def retold(shard: bytes, footer: Callable[[bytes], bytes]) -> bytes:
    """The shard with another footer."""
    size = int.from_bytes(shard[-8:-4], "little")
    told = footer(shard[-8 - size : -8])
    return shard[: -8 - size] + told + len(told).to_bytes(4, "little") + b"PAR1"


def number(value: int) -> bytes:
    """As a footer has it."""
    left, written = value << 1 ^ value >> 63, bytearray()
    while left > 127:
        written.append(left & 127 | 128)
        left >>= 7
    return bytes([*written, left])


def test_a_shard_whose_footer_claims_little_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A hundred kilobytes of zeros may be a memory full, and the footer may say that they are as many."""
    monkeypatch.setattr(unpacking, "MOST_BYTES", 4 * 10**7)
    shard_of(tmp_path / "a.parquet", pa.array([bytes(10**6)] * 60), use_dictionary=False)
    column = pa.parquet.read_metadata(tmp_path / "a.parquet").row_group(0).column(0)
    small, large = number(column.total_compressed_size), number(column.total_uncompressed_size)
    honest = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(retold(honest, lambda footer: footer.replace(large, small)))
    store = open_store(str(tmp_path))
    encoded = Encoded(build_index(store, Data(uri="x", validation_split=0.5)), store)
    assert encoded.group_bytes.max() < 10**5
    monkeypatch.delattr(pa.parquet.ParquetFile, "iter_batches")
    with pytest.raises(BadInput, match=r"a\.parquet must be a Parquet file.* it unpacks to more than 0 GB"):
        next(encoded.blobs(np.arange(60)))


@pytest.mark.parametrize("value", [-1, 0, 7, 2**40, 2**62])
@pytest.mark.parametrize("what", ["num_rows", "num_values", "total_compressed_size", "data_page_offset"])
def test_a_footer_that_tells_of_what_is_not_there_is_one_line(tmp_path: Path, what: str, value: int):
    """Rows and bytes, of a row group or of a column: it asks for no memory by them, and takes no image for another."""
    file, images = tmp_path / "a.parquet", [b"%d" % i for i in range(22)]
    shard_of(file, pa.array(images), use_dictionary=False)
    group = pa.parquet.read_metadata(file).row_group(0)
    told = number(group.num_rows if what == "num_rows" else getattr(group.column(0), what))
    lie = honest = file.read_bytes()
    for field in (b"\x16", b"\x26"):  # of 64 bits, the next one and the one after
        lie = retold(lie, lambda footer, field=field: footer.replace(field + told, field + number(value)))
    assert lie != honest
    file.write_bytes(lie)
    store = open_store(str(tmp_path))

    def look() -> None:
        index = build_index(store, Data(uri="x", validation_split=0.5))
        assert list(Encoded(index, store).blobs(np.arange(len(index)))) == images[: len(index)]

    takes_or_tells(look)


def test_a_damaged_footer_ends_no_process(tmp_path: Path):
    """pyarrow aborts it, where it is asked for a column of which the footer tells what cannot be."""
    good = next(iter(SHARDS.values()))
    damaged = retold(good, lambda footer: footer.replace(b"\x02\x18\x05label", b"\x00\x18\x05label"))
    assert damaged != good
    code = "import sys, pyarrow as pa; from orchestrator.data.unpacking import read_parquet\n"
    code += "read_parquet(pa.BufferReader(sys.stdin.buffer.read()))"
    ran = subprocess.run([sys.executable, "-c", code], input=damaged, capture_output=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert b"level histogram size mismatch" in ran.stderr.splitlines()[-1]


DEEP = [b"[" * 3000, b'{"a":' * 3000, b'{"shared": ' + b"[" * 3000, b'"' + b"9" * 10_000 + b'"', b"9" * 10_000]


def board_bytes() -> bytes:
    table = pa.table({name: pa.array([None], pa.string()) for name in COLUMNS})
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


PLAN = json.dumps({"shared": {"train.optimizer": "adam"}, "points": ["a", "b"]}).encode()
OWNER = json.dumps({"host": "h", "pid": 1, "started": "b 1", "since": "t", "token": "t", "renewed": "t"}).encode()


@FUZZ
@given(st.data())
def test_any_bytes_in_a_run_folder_are_read_or_put_aside(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    """Plan, owner, result, board and history: a good value or none, and what is not good is kept under damaged/."""
    folder = tmp_path_factory.mktemp("run")
    run = Run(open_store(str(folder), create=True))
    files = {"plan.json": PLAN, "owner.json": OWNER, "trials/a-1.json": b"{}", "leaderboard.parquet": board_bytes()}
    deep = st.sampled_from(DEEP) | json_values.map(lambda tree: json.dumps(tree).encode())
    written = {key: data.draw(mutated(good) | deep, key) for key, good in files.items()}
    for key, content in written.items():
        run.store.write(key, content)
    plan, results = run.read_plan(), run.read_results()
    aside = run.tidy()
    _is_gone(_read(run.store)[0])
    takes_or_tells(lambda: read_board(str(folder)))
    assert (folder / ("plan.json" if plan else "damaged/plan.json")).read_bytes() == written["plan.json"]
    assert results == {}
    assert (folder / "damaged/trials/a-1.json").read_bytes() == written["trials/a-1.json"]
    for key in aside:
        assert (folder / key).read_bytes() == written[key.removeprefix("damaged/")]


@FUZZ
@given(mutated(json.dumps({"crc32": 0, "bad": {"1": "reason"}}).encode()) | st.sampled_from(DEEP))
def test_any_bytes_in_a_caches_facts_are_a_cache_or_none(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    """A cache that is not whole is no cache."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "meta.json").write_bytes(data)
    (folder / "images.u8").write_bytes(bytes(48))
    found = open_cache_folder(folder, Wanted("a", (1, 4, 4, 3), "uint8", "images", lambda values, old: {}))
    assert found is None or found.values.shape == (1, 4, 4, 3)


def test_no_file_name_leads_out_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A cache is named by a digest and holds two files, whatever the images are called."""
    monkeypatch.setenv("ORCHESTRATOR_CACHE_DIR", str(tmp_path / "caches"))
    pictures = class_folder({"cat": 3, "dog": 3}, 8, 8)
    names = {key: f"{key.split('/')[0]}/a..%2f..%2f{i} $(touch x) ; & .png" for i, key in enumerate(pictures)}
    store = fill(open_store(str(tmp_path / "images"), create=True), {names[k]: v for k, v in pictures.items()})
    code = """
import sys
from orchestrator.data.cache import open_cache
from orchestrator.data.indexing import build_index
from orchestrator.spec.sections import Data
from orchestrator.store import open_store

store, data = open_store(sys.argv[1]), Data(uri=sys.argv[1], image_size=(8, 8), validation_split=0.5)
open_cache(build_index(store, data), store, data)
"""
    subprocess.run([sys.executable, "-c", code, store.uri], cwd=tmp_path, check=True, capture_output=True)
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.parts[0] for path in written} == {"caches", "images"}
    assert {path.name for path in written if path.parts[0] == "caches"} >= {"images.u8", "meta.json"}
    assert len([path for path in written if path.parts[0] == "images"]) == 6 + 1, "and the folder's lock"
