"""The law of the house: which room may import what, read from the import statements and seen in a running process."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import orchestrator

ROOT = Path(orchestrator.__file__).parent
HEAVY = {"ray", "tensorflow", "keras", "boto3", "botocore", "obstore", "tensorboardX", "mlflow"}
OWNERS = {  # library -> the rooms that may import it at all
    "ray": {"fanout"},
    "tensorflow": {"trial", "export", "predict", "dataset.stream", "dataset.pipeline"},
    "keras": {"trial", "export", "dataset.stream", "dataset.pipeline", "model"},
    "boto3": {"store"},
    "botocore": {"store"},
    "obstore": {"store"},
    "tensorboardX": {"events"},
    "mlflow": {"tracking"},
}
ROOMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.rglob("*.py") if path.name != "__init__.py"
)


def imports(node: ast.AST, room: str, at_import: bool) -> Iterator[str]:
    """Dotted names that a room imports; at_import: only those that run when the room itself is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (name.name for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{room} line {child.lineno}: imports are absolute here"
            yield from (f"{child.module}.{name.name}" for name in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        elif not (at_import and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield from imports(child, room, at_import)


@cache
def imported(room: str, at_import: bool) -> frozenset[str]:
    """Libraries by their first name, our own rooms as orchestrator.ROOM."""
    tree = ast.parse((ROOT / (room.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    found = set()
    for name in imports(tree, room, at_import):
        own = [r for r in ROOMS if name == f"orchestrator.{r}" or name.startswith(f"orchestrator.{r}.")]
        found.add(f"orchestrator.{own[-1]}" if own else name.partition(".")[0])
    return frozenset(found)


@cache
def loaded_with(room: str) -> frozenset[str]:
    """All that importing a room imports, through the rooms it imports too."""
    found, todo = set(), [room]
    while todo:
        new = imported(todo.pop(), True) - found
        found |= new
        todo += [name.removeprefix("orchestrator.") for name in new if name.startswith("orchestrator.")]
    return frozenset(found)


def test_the_rooms_are_read():
    """The reader of import statements sees what is known to be there."""
    assert {"spec", "plan", "grid", "dataset.index"} <= set(ROOMS)
    assert "orchestrator.fanout" in imported("grid", False) - imported("grid", True)
    assert "ray" in imported("fanout", False)
    assert "keras" in imported("model", False) - imported("model", True)
    assert {"obstore", "orchestrator.store"} <= loaded_with("leaderboard")


@pytest.mark.parametrize("room", ROOMS)
def test_a_library_has_its_own_rooms(room: str):
    """Only fanout knows Ray, only what runs on a worker knows TensorFlow, only the store knows object storage."""
    assert {library for library in imported(room, False) & HEAVY if room not in OWNERS[library]} == set()


@pytest.mark.parametrize("room", ["spec", "plan", "forecast", "budget", "result", "errors", "model", "statistics"])
def test_a_pure_room_loads_nothing_heavy(room: str):
    """Not even through another room: they can be used, and tested, anywhere. The model loads Keras when it builds."""
    assert loaded_with(room) & (HEAVY | {"pyarrow", "typer", "rich", "orchestrator.store"}) == set()


def test_the_core_of_the_leaderboard_does_no_io():
    """Tables in, tables out: it needs pyarrow, and neither a store nor a terminal."""
    assert loaded_with("board") & (HEAVY | {"typer", "rich", "orchestrator.store", "orchestrator.run"}) == set()


@pytest.mark.parametrize(
    "room",
    [
        "grid",
        "submit",
        "calibrate",
        "leaderboard",
        "report",
        "predict",
        "run",
        "winner",
        "events",
        "tracking",
        "lease",
        "progress",
        "store",
        "dataset.index",
    ],
)
def test_the_driver_loads_neither_tensorflow_nor_ray(room: str):
    """What a laptop runs before any training starts is quick; of object storage it loads obstore alone."""
    assert loaded_with(room) & HEAVY <= {"obstore"}


def test_a_trial_knows_nothing_of_the_cluster():
    """It can be run, and resumed, by a plain function call."""
    assert not loaded_with("trial") & {"ray", "orchestrator.fanout"}


RUN = """
import contextlib, io, os, runpy, sys
sys.argv[0] = "x"
os._exit = sys.exit  # or nobody would be left to look
out = io.StringIO()
with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
    runpy.run_module(sys.argv.pop(1), run_name="__main__")
assert "batch_size" in out.getvalue() or "RUN" in out.getvalue(), out.getvalue()
print(*sorted({"ray", "tensorflow", "keras", "boto3"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments",
    [["orchestrator.grid", "--plan"], ["orchestrator.leaderboard", "--help"], ["orchestrator.report", "--help"]],
)
def test_a_command_that_trains_nothing_loads_nothing_heavy(arguments: list[str], tmp_path: Path):
    """`grid --plan`, `leaderboard` and `report` start without TensorFlow, Ray and boto3."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
    assert list(tmp_path.iterdir()) == []
