"""errors: how a command ends, whatever threads, readers and disks do meanwhile."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

COMMANDS = ("grid", "leaderboard", "report", "predict", "pack", "calibrate", "submit", "export")
THREADS = {
    "one that Python would wait for": """
def start():
    threading.Thread(target=threading.Event().wait).start()
""",
    # by Python's own way out it would abort the process
    "one of Arrow's that comes back to Python later": """
import io, time
import pyarrow as pa, pyarrow.parquet as pq

class Late(io.BytesIO):
    def read(self, size=-1):
        if threading.current_thread() not in known:
            reading.set()
            time.sleep(0.5)
        return super().read(size)

def start():
    pq.write_table(pa.table({"a": range(1000)}), whole := io.BytesIO())
    parquet = pq.ParquetFile(pa.PythonFile(Late(whole.getvalue()), mode="r"), pre_buffer=True)
    known.append(threading.Thread(target=parquet.read, daemon=True))
    known[-1].start()
    reading.wait()

reading, known = threading.Event(), [threading.main_thread()]
""",
}
MAIN = """
import os, sys, threading
from orchestrator.errors import run_command

def start(): ...
{before}
def main(end: str = "0"):
    start()
    print("x" * 100)
    print("a word", file=sys.stderr, end="")
    raise SystemExit(int(end)) if end.isdigit() else ValueError(end)

run_command(main)
"""


def run(*arguments: str, before: str = "", **options) -> subprocess.CompletedProcess[str]:
    """A command of its own, which prints 100 letters and a word, and ends as --end says."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    options = {"stdout": subprocess.PIPE, "env": buffered, **options}
    command = [sys.executable, "-c", MAIN.format(before=before), *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("before", THREADS.values(), ids=THREADS)
def test_a_thread_that_is_still_there_neither_holds_the_command_nor_changes_its_status(before: str) -> None:
    """All that was said has arrived."""
    for status in (0, 3):
        done = run("--end", str(status), before=before)
        assert (done.returncode, done.stdout, done.stderr) == (status, f"{'x' * 100}\n", "a word")


def test_a_bug_keeps_its_traceback() -> None:
    """After what was said before it, without what controls a terminal; the status is 1."""
    done = run("--end", "a bug of ours\x1b[2J")
    assert (done.returncode, done.stdout) == (1, f"{'x' * 100}\n")
    assert done.stderr.startswith("a wordTraceback (most recent call last):\n")
    assert done.stderr.endswith("\nValueError: a bug of ours [2J\n")


def test_a_mistake_in_the_arguments_is_2_and_help_is_0() -> None:
    """As Typer has it."""
    wrong, helped = run("--unknown"), run("--help")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "No such option: --unknown" in wrong.stderr
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "--end" in helped.stdout


def test_a_reader_that_leaves_changes_nothing() -> None:
    """As `head`, which has seen enough: in silence, with the command's own status, whether words were on their way."""
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as reader:
        reader.wait()
        for unbuffered, status in (("", 0), ("1", 0), ("", 3), ("1", 3)):
            done = run("--end", str(status), stdout=reader.stdin, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
            assert (done.returncode, done.stderr) == (status, "a word")


def test_a_reader_that_is_slow_misses_nothing() -> None:
    """Not even where somebody made the pipe non-blocking, as programs before it in a shell may."""
    before = "os.set_blocking(1, False)\ndef start(): print('y' * 300_000)"
    assert run(before=before).stdout == "y" * 300_000 + "\n" + "x" * 100 + "\n"


def test_what_cannot_be_written_is_said() -> None:
    """A table that went to a full disk must not look like one that is there; a run is there, whatever its log is."""
    lost = "error: stdout must take what is written to it: No space left on device\n"
    with open("/dev/full", "w") as full:
        for end, before, status, said in (
            ("0", "", 2, lost),
            ("3", "", 3, lost),
            ("0", "from orchestrator.errors import end_whoever_reads\nend_whoever_reads()", 0, ""),
        ):
            done = run("--end", end, before=before, stdout=full)
            assert (done.returncode, done.stderr) == (status, f"a word{said}")


@pytest.mark.parametrize("closed", ["1", "2", "1, 2", "0, 1, 2"])
def test_without_streams(closed: str, tmp_path: Path) -> None:
    """As under some schedulers: the status is all there is, and no file that is opened gets what was printed."""
    code = MAIN.format(before="file = open('file', 'w')\n").replace("start()\n    print", "file.flush()\n    print")
    line = f"import os, sys\nfor number in ({closed},):\n    os.close(number)\n"
    line += f"os.execv(sys.executable, [sys.executable, '-c', {code!r}, '--end', '3'])"
    done = subprocess.run([sys.executable, "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "" if "1" in closed else f"{'x' * 100}\n")
    assert done.stderr == ("" if "2" in closed else "a word")
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_through_one_door(name: str) -> None:
    """Whatever libraries want to do as Python ends: here one that would change the status."""
    code = "import atexit, os, runpy\natexit.register(os._exit, 9)\n"
    code += f"runpy.run_module('orchestrator.{name}', run_name='__main__', alter_sys=True)"
    for argument, status in (("--help", 0), ("--top=x", 2)):
        done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stderr
        assert done.stdout if argument == "--help" else done.stderr


@pytest.mark.slow
def test_no_call_in_a_hundred_ends_by_abort(tmp_path: Path) -> None:
    """On a busy machine, where threads of libraries are late: six at a time."""

    def plan(_: int) -> tuple[int, str]:
        command = [sys.executable, "-m", "orchestrator.grid", "--plan"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stderr

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(plan, range(100))) == {(0, "")}
