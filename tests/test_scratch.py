"""scratch: folders of killed processes go; those in use, and whatever anybody else made, stay."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from orchestrator import scratch

HOLD = """
from orchestrator.scratch import scratch
with scratch() as folder:
    (folder / "large").write_text("x")
    (folder / "small").write_text("x")
    print(folder, flush=True)
    input()
"""
BROKEN_OFF = """
import os, shutil
from orchestrator.scratch import scratch
with scratch() as folder:
    (folder / "large").write_text("x")
    (folder / "small").write_text("x")
    print(folder, flush=True)
    shutil.rmtree = lambda *_, **__: os._exit((folder / "small").unlink() or 9)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary directory of this process and of those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def left_over(code: str = HOLD) -> Path:
    """What a killed process leaves in the temporary directory."""
    with subprocess.Popen([sys.executable, "-c", code], text=True, stdin=-1, stdout=-1) as process:
        folder = Path(process.stdout.readline().strip()).parent
        process.send_signal(signal.SIGKILL) if code is HOLD else process.wait()
    assert folder.exists()
    return folder


def snapshot(folder: Path) -> dict[Path, str]:
    """Everything below a folder, links not followed."""

    def content(path: Path) -> str:
        return os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else ""

    return {path: content(path) for path in folder.rglob("*")}


def test_a_folder_goes_with_its_process_or_soon_after(tmp_path: Path) -> None:
    """One that ends takes it along; that of a killed one is swept away, that of a living one is not."""
    folders = []
    for number in (0, signal.SIGKILL, None):
        command = [sys.executable, "-c", HOLD]
        process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        folders.append(Path(process.stdout.readline().strip()))
        if number is not None:
            process.send_signal(number)
            process.communicate("\n")
    ended, killed, living = folders
    assert not ended.exists()
    assert killed.exists()
    scratch.sweep()
    assert not killed.exists()
    assert living.exists()
    process.communicate("\n")
    assert list(tmp_path.iterdir()) == []


def test_what_others_made_stays(temporary: Path) -> None:
    """Whatever it is called and however much it looks like ours: also a copy of one, and what was put into it."""
    ours = left_over()
    digits = "0123456789abcdef" * 2
    for name in ("orchestrator-mydata", "batch-orchestrator-runs", f"batch-orchestrator-{digits}", digits):
        (temporary / name / "files").mkdir(parents=True)
        (temporary / name / "files" / "thesis.txt").write_text("precious")
    nested = temporary / f"batch-orchestrator-{digits[::-1]}"  # as some archives unpack
    (nested / nested.name).mkdir(parents=True)
    (nested / "files").mkdir()
    (nested / "files" / "thesis.txt").write_text("precious")
    (temporary / f"batch-orchestrator-{'a' * 32}").write_text("a file")
    shutil.copytree(ours, temporary / f"batch-orchestrator-{'b' * 32}")
    shutil.copytree(ours, temporary / f"{ours.name}-copy")
    (temporary / "elsewhere").mkdir()
    shutil.copytree(ours, temporary / "elsewhere" / ours.name)
    (temporary / f"batch-orchestrator-{'c' * 32}").symlink_to(temporary / "elsewhere")
    before = {path: text for path, text in snapshot(temporary).items() if ours not in (path, *path.parents)}
    theirs = ours / "notes.txt"
    theirs.write_text("mine")
    scratch.sweep()
    mark = ours / ours.name
    assert snapshot(temporary) == {**before, ours: "", mark: "", theirs: "mine"}


def test_a_link_to_a_left_over_is_not_followed(temporary: Path) -> None:
    """Even where it has the name that the left-over had, and all that it leads to is marked."""
    ours = left_over()
    (temporary / "kept").mkdir()
    ours.rename(temporary / "kept" / ours.name)
    ours.symlink_to(temporary / "kept" / ours.name)
    before = snapshot(temporary)
    scratch.sweep()
    assert snapshot(temporary) == before


def test_what_is_half_removed_goes_too(temporary: Path) -> None:
    """A process killed while it takes its folder along leaves the mark, whatever it has removed by then."""
    folder = left_over(BROKEN_OFF)
    assert [path.name for path in (folder / "files").iterdir()] == ["large"]
    scratch.sweep()
    assert list(temporary.iterdir()) == []


def test_another_process_may_sweep_at_any_moment(temporary: Path) -> None:
    """Before every line of the making and of the removing: the folder is there while it is wanted, and then gone."""
    swept = 0

    def sweep_first(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal swept
        if frame.f_code.co_filename != scratch.__file__:
            return None
        scratch.sweep()
        swept += 1
        return sweep_first

    before = sys.gettrace()
    sys.settrace(sweep_first)
    try:
        with scratch.scratch() as folder:
            (folder / "a").write_text("x")
            assert (folder / "a").read_text() == "x"
    finally:
        sys.settrace(before)
    assert swept > 15
    assert list(temporary.iterdir()) == []
