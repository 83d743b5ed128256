"""Fuzzing by coverage, where atheris installs: a good value or one line, never another error, never a hang."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 5
FUZZER = """
import sys
import atheris

with atheris.instrument_imports(include=["orchestrator", "yaml", "json"]):
    from orchestrator.runs import lease
    from orchestrator.errors import BadInput
    from orchestrator.display.opening import read_board
    from orchestrator.runs.result import Result
    from orchestrator.runs.folder import Run
    from orchestrator.spec.reading import load_spec
    from orchestrator.store import open_store

target, folder = sys.argv.pop(1), sys.argv.pop(1)
run = Run(open_store(folder, create=True))


def spec(data):
    load_spec(data.decode("utf-8", "replace"))


def result(data):
    Result.unsealed(data)


def folder_of_files(data):
    for key in ("plan.json", "owner.json", "leaderboard.parquet"):
        run.store.write(key, data)
    run.read_plan()
    lease._is_gone(lease._read(run.store)[0])
    read_board(folder)


def one(data):
    try:
        {"spec": spec, "result": result, "files": folder_of_files}[target](data)
    except BadInput as error:
        assert "\\n" not in str(error)
    except ValueError:
        assert target == "result"  # what run.py takes for damage


atheris.Setup(sys.argv, one)
atheris.Fuzz()
"""
SEEDS = {
    "spec": b"name: a\ndata: {uri: x}\ngrid: {epochs: [1, 2]}\ntrain: {early_stopping: {patience: 1}}\n",
    "result": b'{"version":1,"trial_id":"a","status":"ok","epochs":1,"history":[],"digests":{"1":"d"}}',
    "files": b'{"shared": {"a": 1}, "points": ["a"], "host": "h", "pid": 1, "started": "b"}',
}


@pytest.mark.parametrize("target", SEEDS)
def test_what_coverage_finds(target: str, tmp_path: Path) -> None:
    """Seconds of inputs that each reach something new in the code."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("needs atheris, which has wheels for some Pythons on Linux: pip install atheris")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "good").write_bytes(SEEDS[target])
    flags = [f"-max_total_time={SECONDS}", "-timeout=5", "-max_len=4096", f"-artifact_prefix={tmp_path}/", str(corpus)]
    command = [sys.executable, "-c", FUZZER, target, str(tmp_path / "run"), *flags]
    ran = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "DONE" in ran.stderr
