"""Makefile: what it removes is what it made."""

import subprocess
from pathlib import Path

MAKEFILE = Path(__file__).parents[1] / "Makefile"


def make(folder: Path, target: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-C", str(folder), "-f", str(MAKEFILE), target], capture_output=True, text=True)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


def test_clean_leaves_what_it_did_not_make(tmp_path: Path) -> None:
    """An environment of one's own, and whatever lies beside what was built."""
    theirs = [".venv/pyvenv.cfg", "build/mine.txt", "dist/mine.whl", "mine.egg-info/PKG-INFO", "runs/shirts/plan.json"]
    write(tmp_path, *theirs, "build/jpegs/a/1.jpg", "batch_orchestrator.egg-info/PKG-INFO", ".ruff_cache/x")
    assert make(tmp_path, "clean").returncode == 0
    assert files(tmp_path) == set(theirs)


def test_clean_removes_the_environment_that_make_made(tmp_path: Path) -> None:
    """Whole or half-made, and the folder of what was built if nothing else lies there."""
    for mark in (".ready", ".installing"):
        write(tmp_path, ".venv/pyvenv.cfg", f".venv/{mark}", "build/jpegs/a/1.jpg")
        assert make(tmp_path, "clean").returncode == 0
        assert list(tmp_path.iterdir()) == []


def test_setup_does_not_replace_an_environment_of_ones_own(tmp_path: Path) -> None:
    """Where it has no pip, as other tools make them, that is said in a line."""
    write(tmp_path, "pyproject.toml", "constraints.txt", ".venv/pyvenv.cfg")
    before = files(tmp_path)
    done = make(tmp_path, "setup")
    assert done.returncode != 0
    assert "setup: .venv must be one that make has made" in done.stderr
    assert files(tmp_path) == before
