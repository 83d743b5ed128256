"""--json: each command prints one document, and docs/json.md says what is in it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from documented import checked, described, wrong
from grids import grid
from PIL import Image
from run_folders import add_winner, write_run

from orchestrator import calibrate, submit
from orchestrator.documents import document, finite
from orchestrator.driver.outcome import Outcome
from orchestrator.driver.suggesting import added_points
from orchestrator.plans.forecast import FIRST_GUESS
from orchestrator.spec.reading import read_spec

ROOT = Path(__file__).parents[1]
EVENT = re.compile(r"^\| `([a-z]+\.[a-z_]+)` \| [^|]*\| ([^|]+) \|$", re.MULTILINE)


def command(door: str, *args: str, cwd: Path) -> tuple[int, dict[str, Any], str]:
    """Its status, its document, and what people read."""
    line = [sys.executable, "-m", f"orchestrator.{door}", *args, "--json"]
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, checked(done.stdout), done.stderr


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a failed point, two seeds and a winner, in a folder of its own."""
    cwd = tmp_path_factory.mktemp("json")
    run = write_run(str(cwd / "cats"), {"batch_size": [8, 64], "dropout": [0.0, 0.5]}, seeds=(0, 1), fail=1)
    add_winner(run, cwd / "cats")
    return cwd


def test_what_is_no_number_is_null() -> None:
    tree = {"a": [float("nan"), {1: float("inf")}, 0.5], "b": (1,)}
    assert finite(tree) == {"a": [None, {"1": None}, 0.5], "b": [1]}
    assert json.loads(document("x", **tree)) == {"schema": 1, "kind": "x", "a": [None, {"1": None}, 0.5], "b": [1]}


def test_a_plan(tmp_path: Path) -> None:
    """With how long it takes, and what it costs where there is a price."""
    status, plan, said = command("grid", "--plan", "--set", "resources.usd_per_hour=2", cwd=tmp_path)
    assert (status, plan["kind"], said) == (0, "plan", "")
    assert plan["standing"] == {"done": 0, "missing": 0, "new": len(plan["points"])}
    one = plan["forecast"]["nodes"][0]
    assert one["usd"] == pytest.approx(one["seconds"] / 3600 * 2)


@pytest.mark.parametrize("view", ["points", "by_config", "effects", "classes"])
def test_a_board_and_its_views(view: str, cats: Path) -> None:
    """The verdict is there for people, and as values."""
    options = [] if view == "points" else [f"--{view.replace('_', '-')}"]
    status, found, said = command("leaderboard", "cats", *options, cwd=cats)
    assert (status, found["view"], said) == (0, view, "")
    assert found["points"] == {"ok": 7, "stopped": 0, "failed": 1, "not_trained": 0}
    assert found["rows"]
    if view == "points":
        first = found["verdict"]["best"]["values"]
        assert {name: found["rows"][0][name] for name in first} == first
        assert found["verdict"]["sentences"][0].startswith("best: ")


def test_several_boards_and_a_page(cats: Path) -> None:
    status, found, _ = command("leaderboard", "--compare", "cats", "cats", "--top", "1", cwd=cats)
    assert (status, len(found["runs"]), len(found["rows"])) == (0, 2, 1)
    status, found, said = command("report", "cats", cwd=cats)
    assert (status, said) == (0, "")
    assert Path(found["page"]).is_file()


def test_packed_shards(tmp_path: Path) -> None:
    """The lines for people are on stderr."""
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"):
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_bytes(b"x" * 100)
    status, found, said = command("pack", "own", "packed", cwd=tmp_path)
    assert (status, found["images"], found["shards"]) == (0, 4, found["written"])
    assert "4 images of 2 classes" in said
    assert command("pack", "own", "packed", cwd=tmp_path)[1]["written"] == []


@pytest.mark.parametrize(
    ("door", "args", "says"),
    [
        ("grid", ["--plan", "--set", "train.epochs=0"], "train.epochs must be a whole number of at least 1, got 0"),
        ("grid", ["--unknown"], "No such option: --unknown"),
        ("leaderboard", ["cats", "--format", "csv"], "--json and --format csv are two formats"),
        ("report", ["nowhere"], "nowhere must be a folder"),
        ("predict", ["cats", "a.jpg", "--format", "json"], "is not one of"),
        ("predict", ["cats", "a.jpg"], "best.json must be what a grid wrote"),
        ("pack", ["cats", "cats/packed"], "DST must lie outside SRC"),
        ("calibrate", [], "must be a calibration"),
        ("submit", ["../spec.yaml"], "SPEC must lie in the current folder"),
    ],
)
def test_bad_input_is_a_document_too(
    door: str, args: list[str], says: str, cats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of wrong arguments as well; the status stays 2, and people read the same on stderr."""
    monkeypatch.setenv("ORCHESTRATOR_CACHE_DIR", str(cats / "caches"))
    (cats / "caches").mkdir(exist_ok=True)
    (cats / "caches" / "calibration.json").write_text("of somebody else")
    status, found, said = command(door, *args, cwd=cats)
    assert (status, found["kind"]) == (2, "error")
    assert (found["error"]["type"], found["error"]["exit_status"]) == ("bad_input", 2)
    assert says in found["error"]["message"]
    assert said


def test_a_bug_is_a_document_with_its_traceback_on_stderr(tmp_path: Path) -> None:
    code = "from orchestrator.errors import run_command\ndef main(json: bool = False): raise KeyError('a bug')\n"
    line = [sys.executable, "-c", f"{code}run_command(main)", "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
    assert (done.returncode, checked(done.stdout)["error"]["type"]) == (1, "bug")
    assert "Traceback" in done.stderr


def test_a_grid_and_what_its_model_says(shirts: Path, tmp_path: Path) -> None:
    """The same grid again: nothing is trained, and the document is that of the run."""
    again = ["--set", "grid={batch_size: [32, 64], epochs: [1, 2]}", "--set", "resources.usd_per_hour=3600"]
    shutil.copytree(shirts, tmp_path / "runs" / "shirts")
    status, found, said = command("grid", *again, cwd=tmp_path)
    assert (status, found["outcome"], found["points"]["ok"]) == (0, "done", 4)
    worth = {row["trial_id"]: 0.0 for row in found["rows"]}
    for row in found["rows"]:  # two points share a trial, which is paid for once
        worth[row["trial_id"]] = max(worth[row["trial_id"]], row["cost_usd"])
    assert found["cost_usd"] == pytest.approx(sum(worth.values()))
    assert Path(found["model"]).is_file()
    assert "4 of 4 points ok" in said
    for name in ("shirt", "t-shirt"):
        (tmp_path / "own" / name).mkdir(parents=True)
        Image.new("RGB", (28, 28), "white").save(tmp_path / "own" / name / "1.png")
    status, found, said = command("predict", "runs/shirts", "own", "--labelled", cwd=tmp_path)
    assert (status, found["labelled"]["figures"]["accuracy"]["value"], said) == (0, 0.5, "")
    assert {image["label"] for image in found["images"]} == {"shirt", "t-shirt"}


def test_a_suggestion_is_kept_and_becomes_points(shirts: Path, tmp_path: Path) -> None:
    """The same board gives the same, kept once; the file as it stands adds them to the plan, which says their price."""
    pytest.importorskip("optuna")
    shutil.copytree(shirts, tmp_path / "runs" / "shirts")
    there = ", ".join(f"{{batch_size: {size}, epochs: {epochs}}}" for size in (32, 64) for epochs in (1, 2))
    grid = ["grid={batch_size: {from: 30, to: 70}, epochs: [1, 2]}", "sample={points: 2}", f"points=[{there}]"]
    settings = [part for each in grid for part in ("--set", each)]
    status, found, said = command("grid", *settings, "--suggest", "2", cwd=tmp_path)
    assert (status, found["learned_from"], said) == (0, 2, "")
    assert [point["epochs"] for point in found["points"]] == [1, 2, 1, 2]
    assert found["forecast"]["nodes"][0]["seconds"] > 0
    file = tmp_path / "runs" / "shirts" / "suggested" / "1.yaml"
    assert shlex.split(found["command"]) == ["python", "-m", "orchestrator.grid", *settings, "--points", str(file)]
    again = command("grid", *settings, "--suggest=2", cwd=tmp_path)[1]
    assert (again["points"], again["file"]) == (found["points"], found["file"])
    spec = read_spec(None, grid, added_points([str(file)]))
    assert spec.points[4:] == found["points"]
    assert read_spec(None, [*grid[:2], f"points={json.dumps(spec.points)}"], added_points([str(file)])) == spec


def test_a_calibration_and_a_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes a minute, and what takes a cluster, stand in for themselves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibrate, "calibrate", lambda precisions: (FIRST_GUESS, tmp_path / "calibration.json"))
    calibrate.main(as_json=True)
    assert checked(capsys.readouterr().out)["source"] == FIRST_GUESS.source
    (tmp_path / "a.yaml").write_text("{name: a, data: {uri: s3://b/c}, output: s3://b/runs, grid: {epochs: [1]}}")
    monkeypatch.setattr(submit, "submit", lambda *args: ("a-1", 3))
    with pytest.raises(SystemExit) as ended:
        submit.main(typer.Context(click.Command("submit")), "a.yaml", as_json=True)
    found = checked(capsys.readouterr().out)
    assert (ended.value.code, found["exit_status"], found["run"]) == (3, 3, "s3://b/runs/a")


def events(run: Path) -> list[dict[str, Any]]:
    """What happened in a run, each as docs/json.md has it."""
    text = (ROOT / "docs" / "json.md").read_text()
    own = {name: set(re.findall("`([a-z_]+)`", names)) for name, names in EVENT.findall(text)}
    found = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    for each in found:
        assert each.keys() == own[each["event"]] | {"time", "event"}
        below = tuple(f"{name}." for name in each)
        fields = {n: kind for n, kind in described()["events.jsonl"].items() if n in each or n.startswith(below)}
        assert [*wrong(each, fields)] == []
    return found


def test_what_happened_is_recorded_and_a_resumed_run_goes_on_with_it(shirts: Path, tmp_path: Path) -> None:
    """Two trials of two points each; then another driver, which trains nothing."""
    shutil.copytree(shirts, tmp_path / "runs" / "shirts")
    found = events(shirts)
    assert [each["event"] for each in found if each["event"].startswith("run.")] == ["run.began", "run.done"]
    for trial in {each["trial"] for each in found if "trial" in each}:
        own = [each for each in found if each.get("trial") == trial]
        assert [each["event"] for each in own] == [
            *("trial.started", "trial.ready", "trial.epoch", "trial.reached", "trial.epoch", "trial.done")
        ]
        assert own[3]["point_ids"] == own[5]["point_ids"][:1]
        assert set(own[5]["point_ids"]) == set(own[0]["point_ids"])
    assert found[-1]["points"] == {"ok": 4, "stopped": 0, "failed": 0, "not_trained": 0}
    assert sorted(each["time"] for each in found) == [each["time"] for each in found]
    assert grid("--set", "grid={batch_size: [32, 64], epochs: [1, 2]}", cwd=tmp_path).returncode == 0
    again = events(tmp_path / "runs" / "shirts")
    assert again[: len(found)] == found
    assert [each["event"] for each in again[len(found) :]] == ["run.began", "run.done"]
    assert again[-1]["best"] == found[-1]["best"]


@pytest.mark.parametrize(("name", "status"), [("done", 0), ("failed", 1), ("budget", 3), ("interrupted", 130)])
def test_outcomes_have_the_statuses_that_the_readme_names(name: str, status: int) -> None:
    assert Outcome(name).exit_status == status
