"""README: what stands in it works: its specs, and its Python on a finished run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.spec.code import read_code
from orchestrator.spec.reading import load_spec

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_the_specs_are_valid() -> None:
    """Every YAML block that is a whole spec."""
    assert [load_spec(block).name for block in blocks("yaml")] == ["pets"]


@pytest.mark.parametrize("library", ["pandas", "duckdb"])
def test_the_examples_read_a_finished_run(library: str, shirts: Path) -> None:
    """Both answer with the mean, or the best, of each batch size."""
    (block,) = (block for block in blocks("python") if f"import {library}" in block)
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=shirts.parents[1], text=True, capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\b32\b.*0\.\d", done.stdout)
    assert re.search(r"\b64\b.*0\.\d", done.stdout)


def test_the_models_are_ones_that_a_grid_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function of the README, with the axis that it names."""
    (block,) = (block for block in blocks("python") if "def wide" in block)
    (tmp_path / "my_readme_model.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert read_code("my_readme_model:wide", ["width"]).defaults == {"width": 32}
