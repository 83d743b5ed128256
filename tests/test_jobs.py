"""jobs: every spec that comes with the project is planned as it stands, and trained shrunk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from images import class_folder, fill

from orchestrator.store import open_store

ROOT = Path(__file__).parents[1]
JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.yaml"))
POINTS = {
    "backbone.yaml": 36,
    "batch_size_study.yaml": 42,
    "full_grid.yaml": 108,
    "my_model.yaml": 4,
    "notebook.yaml": 3,
    "race.yaml": 72,
    "ranges.yaml": 128,
}


def grid(*args: str) -> subprocess.CompletedProcess[str]:
    """The command as each spec gives it: in the folder that holds jobs/."""
    command = [sys.executable, "-m", "orchestrator.grid", *args]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    fill(open_store(str(folder / "pets"), create=True), class_folder({"cats": 15, "dogs": 15}))
    return folder


def places(folder: Path, name: str) -> list[str]:
    """Options that take a person's images, and all run folders, from where the person has them to here."""
    own = "sample://" not in (ROOT / "jobs" / name).read_text()
    return [*(["--data", str(folder / "pets")] if own else []), "--output", str(folder / "runs")]


def shrunk(spec: Path, folder: Path) -> Path:
    """Two values of the first axis, one of each other, or two draws; every single point; one epoch, one seed."""
    tree = yaml.safe_load(spec.read_text())
    if "sample" in tree:
        tree["sample"]["points"] = 2
    else:
        lists = enumerate(tree.get("grid", {}).items())
        tree["grid"] = {name: values[-1 if i else -2 :] for i, (name, values) in lists}
    if "epochs" in tree["grid"]:
        tree["grid"]["epochs"] = [1]
    tree["points"] = [{**point, "epochs": 1} for point in tree.get("points", [])]
    tree["seeds"] = [0]
    tree["train"] = {**tree.get("train", {}), "epochs": 1}
    (folder / spec.name).write_text(yaml.safe_dump(tree))
    return folder / spec.name


def test_every_spec_is_known() -> None:
    """A new spec must be planned and trained here too."""
    assert set(JOBS) == set(POINTS)


@pytest.mark.parametrize("name", JOBS)
def test_a_spec_is_planned_as_it_stands(name: str, folder: Path) -> None:
    """With its comment: command, time and accuracy."""
    text = (ROOT / "jobs" / name).read_text()
    assert all(f"# {word}:" in text for word in ("command", "time", "accuracy"))
    assert f"jobs/{name}" in text
    done = grid(f"jobs/{name}", "--plan", "--json", *places(folder, name))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["points"]) == POINTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_a_spec_is_trained_shrunk(name: str, folder: Path, tmp_path: Path) -> None:
    """Every point is ok, and the winner's model is there."""
    done = grid(str(shrunk(ROOT / "jobs" / name, tmp_path)), "--json", *places(folder, name))
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["status"] for row in rows} == {"ok"}
    assert len(rows) == (3 if name == "notebook.yaml" else 2)
    run = folder / "runs" / yaml.safe_load((ROOT / "jobs" / name).read_text())["name"]
    assert (run / "models" / "best.keras").exists()
