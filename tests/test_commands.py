"""commands: the grid as a user starts it, up to the point where it would train: bad input, and --plan."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.data.changes import remember
from orchestrator.data.indexing import build_index
from orchestrator.driver.summary import dataset_facts
from orchestrator.runs.folder import Run
from orchestrator.runs.result import Epoch, Result
from orchestrator.spec.axes import shared_settings
from orchestrator.spec.reading import load_spec
from orchestrator.store import open_store

SPEC = """
name: cats
data: {uri: images}
grid: {batch_size: [3, 4], epochs: [1, 2]}
"""


def grid(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m orchestrator.grid` in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.grid", *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )


def images(folder: Path, **counts: int) -> None:
    """Files that an index takes for images: looking into them is the trials' work."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i:03}.jpg").write_bytes(b"x")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A current folder with a spec and 10 + 15 images: 20 train."""
    (tmp_path / "spec.yaml").write_text(SPEC)
    images(tmp_path / "images", cats=10, dogs=15)
    return tmp_path


def test_bad_input_is_one_line_and_leaves_nothing_behind(folder: Path):
    """Whatever is wrong: exit 2, one line that begins with `error: `, no run folder."""
    (folder / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    (folder / "twice.yaml").write_text(f"{SPEC}name: dogs\n")
    (folder / "empty").mkdir()
    images(folder / "single", cats=10)
    images(folder / "lonely", cats=10, dogs=1)
    images(folder / "texts", cats=10, dogs=10)
    (folder / "texts" / "dogs" / "notes.txt").write_text("x")
    (folder / "file").write_text("x")
    spec = "spec.yaml"
    says = {
        ("none.yaml",): "SPEC must be a YAML file, got none.yaml: No such file or directory",
        ("images",): "SPEC must be a YAML file, got images: Is a directory",
        ("latin.yaml",): "SPEC must be a YAML file, got latin.yaml: not UTF-8 text",
        ("twice.yaml",): "twice.yaml must be YAML, line 5 column 1: the key 'name' stands twice: keep one",
        (spec, "--data", "nowhere"): f"{folder}/nowhere must be a folder; there is none",
        (spec, "--data", "file"): f"{folder}/file must be a folder; it is a file",
        (spec, "--data", "empty"): f"{folder}/empty must hold images as <class>/<image> or Parquet shards, got 0 other",
        (spec, "--data", "single"): f"{folder}/single must hold at least two classes, got one (cats)",
        (spec, "--data", "lonely"): f"class 'dogs' of {folder}/lonely must have at least one image for training",
        (spec, "--data", "texts"): "every file must be a readable image, got 1 that is not: dogs/notes.txt",
        (spec, "--data", "ftp://host/x"): "an address must be s3://BUCKET/PREFIX",
        (spec, "--set", "grid.batch_size=[3, 4, 0]"): "grid.batch_size[2] must be a whole number of at least 1, got 0",
        (
            spec,
            "--set",
            "grid.dropuot=[0.5]",
        ): "grid.dropuot (did you mean dropout?) must be an argument of the model small_cnn (dropout, ",
        (spec, "--set", "model=nets:net"): "model must name a module that can be imported, got nets:net",
        (spec, "--set", "exclude=[{epochs: 3}]"): "exclude[0] must match at least one point of the grid",
        (spec, "--name", "../up"): "name must be letters, digits, '.', '_' and '-'",
        (spec, "--name", "file", "--output", "."): f"{folder}/file must be a folder; it is a file",
        (
            spec,
            "--output",
            "file/runs",
        ): f"{folder}/file/runs/cats must be a folder that you may write; {folder}/file: Not",
        (spec, "--output", "/proc/runs"): "/proc/runs/cats must be a folder that you may write; /proc: No such file or",
    }
    before = sorted(folder.rglob("*"))
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda arguments: grid(folder, *arguments), says))
    for found, line in zip(done, says.values(), strict=True):
        assert found.stderr.startswith(f"error: {line}")
        assert found.stderr.count("\n") == 1
        assert (found.returncode, found.stdout) == (2, "")
    assert sorted(folder.rglob("*")) == before


def test_the_plan_says_what_is_done_missing_and_new(folder: Path):
    """Against a run folder with results; it writes nothing, and as JSON it holds every point and trial."""
    first = grid(folder, "spec.yaml", "--plan", "--json")
    assert (first.returncode, first.stderr) == (0, "")
    tree = json.loads(first.stdout)
    assert tree["standing"] == {"done": 0, "missing": 0, "new": 4}
    assert (tree["training_images"], tree["validation_images"]) == (20, 5)
    assert (tree["epochs_asked"], tree["epochs_trained"]) == (6, 4)
    assert [(p["batch_size"], p["epochs"]) for p in tree["points"]] == [(3, 1), (3, 2), (4, 1), (4, 2)]
    trials = {(t["batch_size"], t["steps_per_epoch"], *t["milestones"]) for t in tree["trials"]}
    assert trials == {(3, 7, 1, 2), (4, 5, 1, 2)}
    assert {p["trial_id"] for p in tree["points"]} == {t["id"] for t in tree["trials"]}
    assert not (folder / "runs").exists()

    run = Run(open_store(str(folder / "runs" / "cats"), create=True))
    epoch = Epoch(epoch=1, loss=1.0, accuracy=0.5, val_loss=1.0, val_accuracy=0.5, train_s=1.0, images_per_s=20.0)
    run.write_plan(SPEC, {}, [point["id"] for point in tree["points"]])
    run.write_result(Result(trial_id=tree["points"][0]["trial_id"], status="ok", epochs=1, history=[epoch]))
    before = sorted(folder.rglob("*"))
    larger = grid(folder, "spec.yaml", "--plan", "--set", "grid.batch_size=[3, 4, 5]")
    assert (larger.returncode, larger.stderr) == (0, "")
    assert "cats: 6 points, 3 trials" in larger.stdout
    assert f"{folder}/runs/cats: 1 done, 3 missing, 2 new" in larger.stdout
    assert "7 at batch size 3 (the last of 2); 5 at batch size 4; 4 at batch size 5" in larger.stdout
    assert sorted(folder.rglob("*")) == before


def test_a_model_may_lie_beside_its_spec(folder: Path):
    """The grid is called from above; a module of that name in the current folder comes first."""
    (folder / "specs").mkdir()
    (folder / "specs" / "spec.yaml").write_text(f"{SPEC}model: nets:net\n")
    net = "def net(input_shape, classes, width): ...\n"
    (folder / "specs" / "nets.py").write_text(net)
    axes = ("specs/spec.yaml", "--plan", "--set", "grid={width: [1, 2]}")
    assert grid(folder, *axes).returncode == 0
    (folder / "nets.py").write_text(net.replace("width", "depth"))
    assert "must be an argument of the model nets:net (depth)" in grid(folder, *axes).stderr
    (folder / "nets.py").write_text(net.replace("width", "momentum=0.9"))
    axes = ("specs/spec.yaml", "--plan", "--set", "grid={momentum: [0.9, 0.99]}")
    assert "grid.momentum sets train.momentum, so momentum must not be an argument" in grid(folder, *axes).stderr


def test_a_run_folder_with_other_shared_settings_is_refused_with_what_differs(folder: Path):
    """Its trials and these could not stand on one board; the line names each setting, old and new."""
    run = Run(open_store(str(folder / "runs" / "cats"), create=True))
    run.write_plan(SPEC, {"train.optimizer": "sgd", "data.image_size": [32, 32], "train.learning_rate": 0.001}, [])
    before = sorted(folder.rglob("*"))
    done = grid(folder, "spec.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {folder}/runs/cats holds a run whose trials share other settings (train.optimizer: sgd -> adam; "
        f"data.image_size: [32, 32] -> (64, 64)): give this one another name, such as --name cats-2, or set them back\n"
    )
    assert sorted(folder.rglob("*")) == before


def test_a_run_whose_images_have_changed_says_which_and_how_to_go_on(folder: Path):
    """One photograph more, one gone, one changed, one moved; where an older version began the run, what it recorded."""
    data = load_spec(SPEC, [f"data.uri={folder / 'images'}"]).data
    run = Run(open_store(str(folder / "runs" / "cats"), create=True))
    index = build_index(open_store(data.uri), data)
    shared = json.loads(json.dumps(shared_settings(load_spec(SPEC)))) | {"index": index.digest, "split": "other"}
    run.write_plan(SPEC, shared, [])
    run.write_dataset(dataset_facts(index, {}, load_spec(SPEC)))
    (folder / "images" / "cats" / "new.jpg").write_bytes(b"x")
    (folder / "images" / "cats" / "000.jpg").unlink()
    for i in range(3):
        (folder / "images" / "dogs" / f"{i:03}.jpg").write_bytes(b"y")
    (folder / "images" / "dogs" / "014.jpg").rename(folder / "images" / "cats" / "014.jpg")
    told = f"error: {folder}/runs/cats holds a run on images that have changed since ("
    cure = "): put them back, or train on these as they are in another run: the same command with --name cats-2\n"
    older = grid(folder, "spec.yaml")
    assert (older.returncode, older.stdout) == (2, "")
    counts = "cats 10 -> 11, dogs 15 -> 14; which ones, this run did not record"
    assert older.stderr == f"{told}{counts}{cure}"
    run.write_index(remember(index))
    which = (
        "2 images added (cats/014.jpg, cats/new.jpg), 2 images removed (cats/000.jpg, dogs/014.jpg), "
        "3 images with other bytes (dogs/000.jpg, dogs/001.jpg, …)"
    )
    assert grid(folder, "spec.yaml", "--plan").stderr == f"{told}{which}{cure}"
    assert grid(folder, "spec.yaml", "--plan", "--name", "cats-2").returncode == 0
