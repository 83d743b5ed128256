"""cache: built once per node, whole or built anew, and clear where the disk says no."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from images import class_folder, encoded, fill, picture

from orchestrator.data.arrays import cache_folder
from orchestrator.data.cache import Cache, open_cache
from orchestrator.data.index import Index
from orchestrator.data.indexing import build_index
from orchestrator.errors import BadInput
from orchestrator.spec.sections import Data
from orchestrator.store import Changed, Object, Store, open_store
from orchestrator.store.folder import Folder

SIZE = (24, 32)


class Counting(Folder):
    """A folder that notes each read of many objects as one line in the file `reads` beside it."""

    def read_many(self, objects: list[Object], in_flight: int = 64) -> Iterator[bytes]:
        with open(f"{self.uri}.reads", "a") as file:
            file.write("one\n")
        yield from super().read_many(objects, in_flight)

    @property
    def reads(self) -> int:
        reads = Path(f"{self.uri}.reads")
        return reads.read_text().count("one") if reads.exists() else 0


def index_of(store: Store, rule: int = 2) -> Index:
    """The index, by reads that are not noted."""
    return build_index(open_store(store.uri), Data(uri="unused", validation_split=0.4, rule=rule))


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    uri = str(tmp_path / "images")
    fill(open_store(uri, create=True), class_folder({"a": 20, "b": 20}))
    return Counting(uri, uri)


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, which does not exist yet."""
    monkeypatch.setenv("ORCHESTRATOR_CACHE_DIR", str(tmp_path / "some" / "caches"))
    return tmp_path / "some" / "caches"


def open_it(store: Store, size: tuple[int, int] = SIZE, resize: str = "bilinear") -> Cache:
    return open_cache(index_of(store), store, Data(uri=store.uri, image_size=size, resize=resize))


def only_cache(caches: Path) -> Path:
    (folder,) = (path for path in caches.iterdir() if path.is_dir())
    return folder


class TestOpening:
    """A cache is built once."""

    def test_holds_every_image_in_its_row(self, store: Counting) -> None:
        """Row by row the images of the index; those that cannot be read are zero and named."""
        fill(store, {"a/0003.png": b"no image", "a/0004.png": encoded(picture(4))[:60]})
        cache = open_it(store)
        assert cache.images.shape == (40, *SIZE, 3)
        assert cache.images.dtype == np.uint8
        assert cache.bad.keys() == {3, 4}
        for row in range(40):
            assert np.array_equal(cache.images[row], np.zeros((*SIZE, 3)) if row in cache.bad else picture(row))

    def test_where_no_image_is_turned_the_caches_of_older_runs_are_found(self, store: Counting, caches: Path) -> None:
        """Their name is as it was before there was a choice; where images are turned, it is another."""
        digest = index_of(store, rule=1).digest
        older = hashlib.sha256(f"1 {store.uri} {digest} {SIZE} bilinear".encode()).hexdigest()[:32]
        for exif, among in (("ignore", True), ("apply", False)):
            shutil.rmtree(caches, ignore_errors=True)
            open_cache(index_of(store, rule=1), store, Data(uri=store.uri, image_size=SIZE, exif=exif))
            assert (only_cache(caches).name == older) == among

    def test_the_second_opening_reads_nothing(self, store: Counting) -> None:
        """Nor does it decode: the same array comes back, with the same bad images."""
        fill(store, {"a/0003.png": b"no image"})
        first, second = open_it(store), open_it(store)
        assert store.reads == 1
        assert np.array_equal(first.images, second.images)
        assert first.bad == second.bad

    @pytest.mark.slow
    def test_three_processes_at_once(self, store: Counting, tmp_path: Path) -> None:
        """One builds, the others wait, and all three see the same."""
        code = f"""
            import sys, zlib
            sys.path.insert(0, {os.path.dirname(__file__)!r})
            from test_cache import Counting, open_it
            print("ready", flush=True)
            sys.stdin.readline()
            print(zlib.crc32(open_it(Counting({store.uri!r}, {store.uri!r})).images))
        """
        processes = [python(code) for _ in range(3)]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        outputs = {process.communicate("go\n")[0] for process in processes}
        assert [process.returncode for process in processes] == [0, 0, 0]
        assert len(outputs) == 1
        assert store.reads == 1

    def test_another_size_or_resize_or_image_is_another_cache(self, store: Counting, caches: Path) -> None:
        """They stand side by side, even for a copy of the folder whose files look alike from outside."""
        fill(store, {"a/0000.png": encoded(picture(0), "BMP"), "a/0001.png": encoded(picture(1), "BMP")})
        copy = shutil.copytree(store.uri, f"{store.uri} copy")
        for other, number in ((store.uri, 1), (copy, 2)):
            Path(other, "a/0000.png").write_bytes(encoded(picture(number), "BMP"))
            os.utime(Path(other, "a/0000.png"), ns=(1, 1))
        for size, resize in ((SIZE, "bilinear"), ((8, 8), "bilinear"), ((8, 8), "area")):
            assert open_it(store, size, resize).images.shape == (40, *size, 3)
        other = Counting(copy, copy)
        assert np.array_equal(open_it(other).images[0], picture(2))
        assert sum(path.is_dir() for path in caches.iterdir()) == 4
        assert store.reads == 3

    def test_a_copy_of_the_images_shares_the_cache(self, store: Counting, caches: Path) -> None:
        """The same bytes are decoded once, wherever they lie and whenever they were written."""
        copy = shutil.copytree(store.uri, f"{store.uri} copy")
        other = Counting(copy, copy)
        assert np.array_equal(open_it(store).images, open_it(other).images)
        assert (store.reads, other.reads) == (1, 0)

    def test_writes_nothing_elsewhere(self, store: Counting, caches: Path, tmp_path: Path) -> None:
        """All it leaves lies in the cache folder: one folder with the array and its description, and the lock."""
        before = {path for path in tmp_path.rglob("*") if caches not in path.parents}
        open_it(store)
        assert {path for path in tmp_path.rglob("*") if caches not in path.parents} - before == {
            caches,
            caches.parent,
            Path(f"{store.uri}.reads"),
        }
        folder = only_cache(caches)
        assert {path.name for path in folder.iterdir()} == {"images.u8", "meta.json"}
        assert {path.name for path in caches.iterdir()} <= {folder.name, f"{folder.name}.lock"}

    def test_writing_to_the_array_changes_no_file(self, store: Counting) -> None:
        """A trial that scribbles on its images harms no other."""
        first = open_it(store)
        expected = first.images.copy()
        first.images[:] = 7
        assert np.array_equal(open_it(store).images, expected)

    def test_folder_by_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the variable, or with an empty one, it is below the home folder."""
        monkeypatch.setenv("HOME", "/home/somebody")
        monkeypatch.setenv("ORCHESTRATOR_CACHE_DIR", "")
        assert cache_folder() == Path("/home/somebody/.cache/batch-orchestrator")
        monkeypatch.delenv("ORCHESTRATOR_CACHE_DIR")
        assert cache_folder() == Path("/home/somebody/.cache/batch-orchestrator")


def python(code: str) -> subprocess.Popen:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=pipe, stdout=pipe, text=True, env=environment
    )


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "array cut short": lambda folder: cut(folder / "images.u8"),
    "array too long": lambda folder: (folder / "images.u8").open("ab").write(b"x"),
    "one bit flipped": lambda folder: flip(folder / "images.u8"),
    "no array": lambda folder: (folder / "images.u8").unlink(),
    "array empty": lambda folder: (folder / "images.u8").write_bytes(b""),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "meta cut short": lambda folder: cut(folder / "meta.json"),
    "meta of another kind": lambda folder: (folder / "meta.json").write_text("[1]"),
    "meta without a sum": lambda folder: (folder / "meta.json").write_text('{"bad": {}}'),
    "bad of another kind": lambda folder: (folder / "meta.json").write_text(json.dumps({"bad": [1], "crc32": 1})),
    "meta not text": lambda folder: (folder / "meta.json").write_bytes(b"\xff\xfe"),
}


class TestDamage:
    """What is not whole is built anew."""

    @pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
    def test_is_built_anew(self, store: Counting, caches: Path, damage: object) -> None:
        """Whatever happened to the files, the images are right again."""
        expected = open_it(store).images.copy()
        damage(only_cache(caches))
        cache = open_it(store)
        assert np.array_equal(cache.images, expected)
        assert cache.bad == {}
        assert store.reads == 2

    @pytest.mark.slow
    def test_killed_while_building(self, store: Counting, caches: Path) -> None:
        """SIGKILL in the middle leaves a half that is neither used nor kept, and no lock that holds."""
        code = f"""
            import sys
            sys.path.insert(0, {os.path.dirname(__file__)!r})
            from test_cache import Counting, open_it

            class Stopping(Counting):
                def read_many(self, objects, in_flight=64):
                    yield from super().read_many(objects[:30], in_flight)
                    print("half", flush=True)
                    sys.stdin.readline()

            open_it(Stopping({store.uri!r}, {store.uri!r}))
        """
        process = python(code)
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()
        assert only_cache(caches).suffix == ".half"
        assert np.array_equal(open_it(store).images[39], picture(39))
        assert only_cache(caches).suffix == ""

    def test_a_failed_build_leaves_no_cache(self, store: Counting) -> None:
        """Where the store fails there is no cache, and the next opening builds it."""
        index = index_of(store)
        before = store.read("b/0019.png")
        store.write("b/0019.png", b"other")
        with pytest.raises(Changed):
            open_cache(index, store, Data(uri=store.uri, image_size=SIZE))
        store.write("b/0019.png", before)
        assert np.array_equal(open_it(store).images[39], picture(39))


class TestDisk:
    """What the disk may say."""

    def test_too_small(self, store: Counting, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is told before anything is read, with what is needed and what there is."""
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
        with pytest.raises(BadInput, match=r"caches must have 31 MB free .* got 1 MB: .* ORCHESTRATOR_CACHE_DIR"):
            open_it(store, (512, 512))
        assert store.reads == 0
        assert not any(path.is_dir() for path in caches.iterdir())

    def test_room_of_a_damaged_one_counts(self, store: Counting, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a damaged cache or a killed build takes is freed before the room is measured."""
        open_it(store)
        folder = only_cache(caches)
        cut(folder / "images.u8")
        shutil.copytree(folder, folder.with_suffix(".half"))

        def measure(path: Path) -> shutil._ntuple_diskusage:
            return shutil._ntuple_diskusage(0, 0, 0 if any(caches.rglob("*.u8")) else 10**9)

        monkeypatch.setattr(shutil, "disk_usage", measure)
        assert open_it(store).bad == {}

    def test_full_while_building(self, store: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
        """The array's room is taken at once: a disk that fills up later must not kill the process."""
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 2**60))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(BadInput, match="File too large; set ORCHESTRATOR_CACHE_DIR"):
                open_it(store, (512, 512))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)

    def test_no_folder_can_be_made(self, store: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file in the way, or a folder that takes no files, is said with the cure."""
        (tmp_path / "file").write_text("")
        for folder in (tmp_path / "file" / "caches", Path("/proc/caches")):
            monkeypatch.setenv("ORCHESTRATOR_CACHE_DIR", str(folder))
            with pytest.raises(BadInput, match=rf"{folder} must be writable: .*; set ORCHESTRATOR_CACHE_DIR"):
                open_it(store)

    def test_read_only(self, store: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
        """Permissions are named. Root may write anywhere: so it is somebody else here meanwhile."""
        user = os.geteuid()
        with tempfile.TemporaryDirectory() as folder:
            caches = Path(folder) / "caches"
            caches.mkdir()
            monkeypatch.setenv("ORCHESTRATOR_CACHE_DIR", str(caches))
            Path(folder).chmod(0o755)
            caches.chmod(0o555)
            data = Data(uri=store.uri)
            index = index_of(store)
            os.seteuid(user or 65534)
            try:
                with pytest.raises(BadInput, match="caches must be writable: Permission denied"):
                    open_cache(index, store, data)
            finally:
                os.seteuid(user)

    def test_opening_needs_no_writing(self, store: Counting, caches: Path) -> None:
        """A cache that is there may lie on a read-only disk: not even the lock is touched."""
        open_it(store)
        for lock in caches.glob("*.lock"):
            lock.unlink()
        open_it(store)
        assert list(caches.glob("*.lock")) == []


class TestLimit:
    """data.cache_limit_gb: what decoded images may take on a node."""

    def open_with(self, store: Store, limit_gb: float, size: tuple[int, int] = SIZE) -> Cache:
        return open_cache(index_of(store), store, Data(uri=store.uri, image_size=size, cache_limit_gb=limit_gb))

    def test_the_cache_unused_for_longest_goes_first(self, store: Counting, caches: Path) -> None:
        """Three caches of which two fit: the one opened last stays, the other of the first two goes."""
        sizes = [(24, 32), (24, 33), (24, 34)]
        limit_gb = 40 * 24 * 34 * 3 * 2.1 / 1e9
        for second, size in enumerate(sizes[:2]):
            self.open_with(store, limit_gb, size)
            for meta in caches.glob("*/meta.json"):
                if meta.stat().st_mtime > 1e9:
                    os.utime(meta, (second, second))
        os.utime(max(caches.glob("*/meta.json"), key=lambda meta: -meta.stat().st_mtime), (5, 5))
        self.open_with(store, limit_gb, sizes[2])
        reads = store.reads
        self.open_with(store, limit_gb, sizes[0])
        assert store.reads == reads
        self.open_with(store, limit_gb, sizes[1])
        assert store.reads == reads + 1

    def test_what_is_larger_is_only_checked(self, store: Counting, caches: Path) -> None:
        """Nothing but the list of bad images is kept, and made once."""
        fill(store, {"a/0003.png": b"no image"})
        cache = self.open_with(store, 0)
        assert cache.images is None
        assert list(cache.bad) == [3]
        reads = store.reads
        assert self.open_with(store, 0).bad == cache.bad
        assert store.reads == reads
        assert not list(caches.rglob("images.u8"))


DIGITS = "0123456789abcdef" * 2
THEIRS = {  # beside our caches, and none of ours, however alike
    "thesis/thesis.txt": "precious",
    "mine.half/thesis.txt": "precious",
    "mine.damaged/thesis.txt": "precious",
    "mine.lock": "held by somebody",
    "pets/images.u8": "precious",
    f"{DIGITS}/thesis.txt": "precious",
    f"{DIGITS[::-1]}/meta.json": '{"bad": "weather"}',
    f"{'a' * 32}/meta.json": '{"crc32": 1, "bad": {}}',
    f"{'a' * 32}/thesis.txt": "precious",
    f"{'b' * 32}/images.u8": "precious",
    f"{'c' * 32}.half/thesis.txt": "precious",
    f"{'d' * 32}.damaged/thesis.txt": "precious",
    f"{'d' * 32}.damaged/images.u8": "precious",
    f"{'e' * 31}.half/images.u8": "precious",
    "elsewhere/images.u8": "precious",
    "elsewhere/meta.json": '{"crc32": 1, "bad": {}}',
}


class TestOthers:
    """ORCHESTRATOR_CACHE_DIR may be any folder: a home, or that of the images."""

    @pytest.fixture
    def theirs(self, caches: Path) -> dict[Path, str]:
        """Lies where the caches go."""
        files = {caches / name: text for name, text in THEIRS.items()}
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for name in (DIGITS.replace("0", "f"), f"{'f' * 32}.half", f"{'f' * 32}.damaged"):
            (caches / name).symlink_to(caches / "elsewhere")
        return files

    def cache_of(self, store: Store, caches: Path, side: int) -> Path:
        """A cache alone: whatever lies beside it that can be proven ours makes room for it."""
        before = set(caches.glob("*"))
        size = (side, side)
        open_cache(
            index_of(store), store, Data(uri=store.uri, image_size=size, cache_limit_gb=40 * side * side * 3 / 1e9)
        )
        (folder,) = (path for path in set(caches.iterdir()) - before if path.is_dir())
        return folder

    def test_what_others_made_stays_and_does_not_count(
        self, store: Counting, caches: Path, theirs: dict[Path, str]
    ) -> None:
        """Where there is room for one cache, each makes room for the next; nothing else goes, is locked or measured."""
        before = set(caches.rglob("*"))
        first = self.cache_of(store, caches, 24)
        last = self.cache_of(store, caches, 25)
        assert not first.exists()
        ours = {last, last / "images.u8", last / "meta.json", *(f.with_suffix(".lock") for f in (first, last))}
        assert set(caches.rglob("*")) == before | ours
        assert {path: path.read_text() for path in theirs} == theirs

    def test_those_of_older_versions_go(self, store: Counting, caches: Path) -> None:
        """Whole, half-made and damaged ones, and one of which the removal broke off."""
        old = {
            f"{DIGITS}/meta.json": '{"crc32": 1, "bad": {}, "shape": [1, 8, 8, 3]}',
            f"{DIGITS}/images.u8": "x" * 192,
            f"{'a' * 32}-checked/meta.json": '{"crc32": null, "bad": {"3": "no image"}}',
            f"{'b' * 32}/meta.json": '{"crc32": 1, "bad": {}}',
            f"{'c' * 32}.half/images.u8": "x",
            f"{'d' * 32}.damaged/images.u8": "x",
            f"{'d' * 32}.damaged/meta.json": "[1",
        }
        for name, text in old.items():
            (caches / name).parent.mkdir(parents=True, exist_ok=True)
            (caches / name).write_text(text)
            if name.endswith("meta.json"):
                os.utime(caches / name, (1, 1))
        last = self.cache_of(store, caches, 24)
        assert [path for path in caches.iterdir() if path.is_dir()] == [last]

    def test_what_was_put_into_a_cache_stays(self, store: Counting, caches: Path) -> None:
        """It is then none of ours any more: it stays whole, also where it is damaged and made anew."""
        noted = self.cache_of(store, caches, 24)
        (noted / "notes.txt").write_text("mine")
        (noted / "images.u8").unlink()
        assert self.cache_of(store, caches, 25) != noted
        assert {path.name for path in noted.iterdir()} == {"meta.json", "notes.txt"}
        open_it(store, (24, 24))
        assert (noted.with_suffix(".damaged") / "notes.txt").read_text() == "mine"

    def test_in_the_folder_of_the_images(self, store: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its classes stay."""
        monkeypatch.setenv("ORCHESTRATOR_CACHE_DIR", store.uri)
        index, before = index_of(store), {path: path.read_bytes() for path in Path(store.uri).rglob("*.png")}
        for side in (24, 25):
            data = Data(uri=store.uri, image_size=(side, side), cache_limit_gb=40 * side * side * 3 / 1e9)
            open_cache(index, store, data)
        assert {path: path.read_bytes() for path in Path(store.uri).rglob("*.png")} == before
        assert len(before) == 40
