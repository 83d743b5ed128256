"""Disks that are full, files that are damaged, clocks that jump."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aftermath import GRID, Undisturbed, check, clean, driving, finished, read_board

from orchestrator.runs.folder import read_parquet

RUN = Path("runs/shirts")
Note = Callable[[str, object, str], None]


class Disk:
    """A small disk of its own in memory, mounted at a folder."""

    def __init__(self, folder: Path, size_kb: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._mount("-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs")

    def grow(self) -> None:
        self._mount("-o", "remount,size=64m")

    def _mount(self, *words: str) -> None:
        subprocess.run(["mount", *words, str(self._folder)], check=True, capture_output=True, text=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self._folder)], check=True)


@pytest.fixture
def disk() -> Iterator[Callable[[Path, int], Disk]]:
    """Mounts small disks, and unmounts them in the end."""
    mounted: list[Disk] = []

    def mount(folder: Path, size_kb: int) -> Disk:
        try:
            mounted.append(Disk(folder, size_kb))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"mounting a disk in memory must be permitted to this user: {getattr(error, 'stderr', error)}")
        return mounted[-1]

    yield mount
    for one in mounted:
        one.unmount()


@pytest.mark.parametrize(
    ("where", "size_kb", "line"),
    [
        pytest.param("cache", 512, "must have 1 MB free for the decoded images", id="cache"),
        pytest.param("runs/shirts/checkpoints", 300, "No space left on device", id="checkpoints"),
        pytest.param("runs", 1600, "No space left on device", id="output"),
    ],
)
def test_disk_full(
    quiet: Undisturbed,
    tmp_path: Path,
    env: dict[str, str],
    disk: Callable[[Path, int], Disk],
    tried: Note,
    where: str,
    size_kb: int,
    line: str,
) -> None:
    """It is said which; with more room, the same command trains what is missing."""
    small = disk(tmp_path / where, size_kb)
    env = {**env, "ORCHESTRATOR_CACHE_DIR": str(tmp_path / "cache")}
    with driving(tmp_path, *GRID, env=env) as driver:
        assert driver.end() in (1, 2), driver.out
    clean(driver)
    assert line in driver.out
    assert not list((tmp_path / "cache").glob("*.half"))
    small.grow()
    before = finished(tmp_path / RUN)
    with driving(tmp_path, *GRID, env=env) as again:
        assert again.end() == 0, again.out
    clean(again)
    assert before.items() <= finished(tmp_path / RUN).items()
    tried(
        f"disk full: {where.replace('runs/shirts/', '').replace('runs', 'run folder')}",
        1,
        check(str(tmp_path / RUN), quiet),
    )


def test_damage(quiet: Undisturbed, tmp_path: Path, caches: Path, env: dict[str, str], tried: Note) -> None:
    """A result, its checkpoint, the tables, the best model's predictions, the cache cut short: aside, and made anew."""
    run, own = tmp_path / RUN, tmp_path / "cache"
    shutil.copytree(quiet.uri, run)
    shutil.copytree(caches, own)
    (result, *_) = sorted((run / "trials").iterdir())
    (cache,) = (path.parent for path in own.glob("*/images.u8") if path.stat().st_size == 1200 * 16 * 16 * 3)
    damaged = {
        f"trials/{result.name}": result,
        f"checkpoints/{result.name.partition('-')[0]}.npz": run / f"checkpoints/{result.name.partition('-')[0]}.npz",
        "leaderboard.parquet": run / "leaderboard.parquet",
        "history.parquet": run / "history.parquet",
        "models/best-validation.parquet": run / "models/best-validation.parquet",
    }
    for file in (*damaged.values(), cache / "images.u8"):
        os.truncate(file, file.stat().st_size // 2)
    bytes_before = {name: file.read_bytes() for name, file in damaged.items()}
    (run / "trials/.0123456789abcdef.tmp").write_bytes(b"half a result")  # as a killed worker leaves it
    others = {name: at for name, at in finished(run).items() if name != result.name}
    with driving(tmp_path, *GRID, env={**env, "ORCHESTRATOR_CACHE_DIR": str(own)}) as driver:
        assert driver.end() == 0, driver.out
    clean(driver)
    assert {name: (run / "damaged" / name).read_bytes() for name in damaged} == bytes_before
    assert cache.with_suffix(".damaged").is_dir()
    assert "is in damaged/leaderboard.parquet" in driver.out
    assert others.items() <= finished(run).items()
    assert len(read_parquet((run / "models/best-validation.parquet").read_bytes())) == 240
    tried("result, checkpoint, board, history, predictions or cache cut short", "1 each", check(str(run), quiet))


# What Python asks jumps, not what Ray's and TensorFlow's own code does: these hand the kernel moments to wait for, and
# its clock stays as it is.
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static volatile int *jump;
static int (*real)(clockid_t, struct timespec *);
static char *low, *high; /* where Python's own code lies: its library, or the program where that holds it */

static int look(struct dl_phdr_info *object, size_t size, void *nothing) {
    char self[PATH_MAX] = "";
    const char *name = object->dlpi_name, *last;
    if (!*name && readlink("/proc/self/exe", self, sizeof self - 1) > 0) name = self;
    last = strrchr(name, '/');
    if (!strstr(last ? last : name, "python")) return 0;
    low = (char *)-1, high = 0;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        char *start = (char *)object->dlpi_addr + object->dlpi_phdr[i].p_vaddr;
        if (object->dlpi_phdr[i].p_type != PT_LOAD) continue;
        if (start < low) low = start;
        if (start + object->dlpi_phdr[i].p_memsz > high) high = start + object->dlpi_phdr[i].p_memsz;
    }
    return 0;
}

__attribute__((constructor)) static void start(void) {
    int file = open(getenv("CLOCK_JUMP"), O_RDONLY);
    real = dlsym(RTLD_NEXT, "clock_gettime");
    dl_iterate_phdr(look, 0);
    if (file >= 0) jump = mmap(0, sizeof(int), PROT_READ, MAP_SHARED, file, 0);
}

int clock_gettime(clockid_t which, struct timespec *now) {
    char *caller = __builtin_return_address(0);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(which, now);
    if (jump && which == CLOCK_REALTIME && low <= caller && caller < high) now->tv_sec += *jump;
    return failed;
}
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler as cc")
def test_clock_jumps(quiet: Undisturbed, tmp_path: Path, env: dict[str, str], tried: Note) -> None:
    """The clock that Python sees jumps an hour forth, then two back, while all train: the lease and all times hold."""
    shim, jump = tmp_path / "shim.so", tmp_path / "jump"
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-o", shim, "-", "-ldl"], input=SHIM, text=True, check=True)
    jump.write_bytes(bytes(4))
    began = time.monotonic()
    with driving(tmp_path, *GRID, env={**env, "LD_PRELOAD": str(shim), "CLOCK_JUMP": str(jump)}) as driver:
        for seconds in (3600, -3600, 0):
            driver.until("epoch ", 16)
            with jump.open("r+b") as file:  # in place: they have it mapped
                file.write(seconds.to_bytes(4, sys.byteorder, signed=True))
        assert driver.end() == 0, driver.out
    clean(driver)
    took_s = time.monotonic() - began
    board = read_board(str(tmp_path / RUN))
    assert board.train_s.between(0, took_s).all()
    moments = [*board.started_at, *board.finished_at]
    assert (max(moments) - min(moments)).total_seconds() > 1800, "the clock did jump"
    tried("clock jumps an hour forward and two back", 1, check(str(tmp_path / RUN), quiet))
