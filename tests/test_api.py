"""The Python API: what its arguments mean, and what its tables, charts and errors show."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from grids import board

import orchestrator
from orchestrator.api.arguments import read
from orchestrator.api.functions import name_of

SPEC = {"name": "pets", "data": {"uri": "pets"}, "grid": {"epochs": [5]}}


@pytest.mark.parametrize(
    ("spec", "fields", "expected"),
    [
        (None, {"data": "./My pets/", "epochs": [1, 2]}, {"name": "My-pets", "grid": {"epochs": [1, 2]}}),
        (None, {"epochs": 3}, {"name": "shirts", "grid": {"epochs": [3]}}),
        (None, {"name": "mine"}, {"name": "mine", "axes": ("batch_size", "epochs", "dropout")}),
        (SPEC, {"epochs": range(2, 5)}, {"grid": {"epochs": [2, 3, 4]}}),
        (SPEC, {"dropout": [0.5], "grid": {"l2": [0]}}, {"grid": {"l2": [0], "dropout": [0.5]}}),
        (SPEC, {"image_size": (32, 32)}, {"grid": {"epochs": [5], "image_size": [(32, 32)]}}),
        (SPEC, {"image_size": [(32, 32), (64, 64)]}, {"grid": {"epochs": [5], "image_size": [(32, 32), (64, 64)]}}),
        (None, {"precision": "auto"}, {"name": "shirts", "axes": ("batch_size", "epochs", "dropout")}),
        (SPEC, {"precision": "float32"}, {"grid": {"epochs": [5], "precision": ["float32"]}}),
        (SPEC, {"backbone": ["none", "MobileNetV2"]}, {"axes": ("epochs", "backbone")}),
        (SPEC, {"output": Path("out"), "seeds": [1, 2]}, {"output": "out", "draws": [(1, 0), (2, 0)]}),
    ],
)  # fmt: skip
def test_what_arguments_mean(spec: Any, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """Fields of the spec replace its own; everything else is an axis."""
    found = read(spec, fields)
    assert {name: getattr(found, name) for name in expected} == expected
    assert SPEC == {"name": "pets", "data": {"uri": "pets"}, "grid": {"epochs": [5]}}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: orchestrator.plan(epoch=[1]), r"grid.epoch \(did you mean epochs\?\)"),
        (lambda: orchestrator.plan("no.yaml"), "SPEC must be a YAML file, got no.yaml"),
        (lambda: orchestrator.plan(data="nowhere", epochs=[1]), "nowhere must be a folder; there is none"),
        (lambda: orchestrator.open_run("nowhere"), "nowhere must be a folder"),
        (lambda: orchestrator.run(epochs=[1], export_models="some"), "export_models must be one of best, all, none"),
        (lambda: orchestrator.run(model=lambda input_shape, classes: None, epochs=[1]), "a function that a module or"),
    ],
)
def test_what_a_person_can_fix_is_one_line(
    call: Callable[[], Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(orchestrator.BadInput, match=says) as error:
        call()
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_says_what_would_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = orchestrator.plan(batch_size=[16, 64], epochs=[1, 2])
    assert (len(plan.points), len(plan.trials)) == (4, 2)
    assert plan.trials["milestones"] == [[1, 2], [1, 2]]
    assert "shirts: 4 points, 2 trials" in repr(plan)
    assert list(tmp_path.iterdir()) == []


def test_a_model_may_lie_beside_its_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the command, which is called from the same folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "nets_beside.py").write_text("def net(input_shape, classes, width=1): ...\n")
    (tmp_path / "specs" / "a.yaml").write_text(
        "{name: a, data: {uri: 'sample://shirts'}, model: 'nets_beside:net', grid: {width: [1, 2]}}"
    )
    assert len(orchestrator.plan("specs/a.yaml").trials) == 2


def test_an_open_run(shirts: Path) -> None:
    """Its board is the command's; tables, verdict, charts and the model are what a person expects of the names."""
    run = orchestrator.open_run(shirts)
    pd.testing.assert_frame_equal(run.board.to_pandas(), board(shirts))
    assert len(run.board.where("epochs>1", batch_size=32)) == 1
    assert run.board.sort("val_loss")["val_loss"] == sorted(run.board["val_loss"])
    assert "<td>1</td>" in run.board._repr_html_()
    assert run.verdict is not None
    assert repr(run.verdict).startswith(f"best: {run.verdict.values.best.label}, val_accuracy 0.")
    assert repr(run.verdict) in repr(run)
    assert "train others with seeds=[" in repr(run.verdict)  # not with --set, as the command says
    assert set(run.board.effects()["axis"]) == {"batch_size", "epochs"}
    assert run.board.by_config()["verdict"][0] == "best"
    curves = run.plot.curves("val_loss")
    assert [list(line.y) for line in curves.data if line.name == run.verdict.values.best.label] == [
        [epoch["val_loss"] for epoch in run.verdict.values.curve]
    ]
    assert curves.layout.xaxis.dtick == 1  # there is no epoch 1.5
    with pytest.raises(orchestrator.BadInput, match=r"metric must be one that epochs record .*, got train_s"):
        run.plot.curves("train_s")
    (cells,) = run.plot.heatmap("epochs", "batch_size").data
    assert (list(cells.x), list(cells.y)) == (["1", "2"], ["32", "64"])
    with pytest.raises(orchestrator.BadInput, match=r"got epoch \(did you mean epochs\?\)"):
        run.plot.heatmap("epoch", "batch_size")


HOSTILE = """
import keras as k
WIDTH = 8
def block(x): return k.layers.Dense(4)(x)
def good(input_shape, classes, width=2): return block
def state(input_shape, classes): return WIDTH
def around():
    secret = 1
    def inside(input_shape, classes): return secret
    return inside
"""


def test_a_function_of_a_notebook_becomes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it uses; what would change unseen is refused, and a file that is not ours stays."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells.py").write_text(HOSTILE)
    script = "exec(compile(open('cells.py').read(), 'cells.py', 'exec'))\n"
    script += "from orchestrator.api.functions import name_of\nfrom orchestrator.errors import BadInput\n"
    script += "print(name_of(good))\nfor each in (state, around()):\n"
    script += "    try: name_of(each)\n    except BadInput as error: print(error)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    named, of_state, of_around = done.stdout.splitlines()
    assert named == "good_model:good"
    text = (tmp_path / "good_model.py").read_text()
    assert "import keras as k\n" in text
    assert text.index("def block") < text.index("def good")
    assert "WIDTH" not in text
    assert of_state.startswith("state must not use WIDTH, which is of the notebook and may change")
    assert "must be a function that a module or a notebook defines" in of_around
    assert name_of(inspect.getsource) == "inspect:getsource"
