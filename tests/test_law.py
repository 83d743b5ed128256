"""The law of the house: which wing may import what, read from the import statements and seen in a running process."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import orchestrator

ROOT = Path(orchestrator.__file__).parent
# From the ground up: a wing imports itself and those above it in this list. What stands on one line does not know
# the others of that line. A file of the package's own folder is a wing of its own; those not named here are doors.
FLOORS = [
    {"words", "documents"},
    {"errors", "metrics", "terminal", "scratch", "machine"},
    {"store"},
    {"spec"},
    {"data"},
    {"plans"},
    {"runs"},
    {"board"},
    {"display", "tracking", "race", "suggest"},
    {"train"},
    {"cluster"},
    {"driver"},
    {"api"},
]
DOORS = {"grid", "leaderboard", "report", "predict", "pack", "calibrate", "submit", "export"}
OWNERS = {  # library -> the wings and files that may import it at all
    "ray": {"cluster"},
    "tensorflow": {"train", "data.stream", "data.augmentation", "data.pipeline"},
    "keras": {"train", "api.opened"},
    "boto3": {"store.aws"},
    "botocore": {"store.aws"},
    "obstore": {"store.bucket", "store.aws"},
    "tensorboardX": {"tracking.tensorboard"},
    "mlflow": {"tracking.mlflow"},
    "plotly": {"display.page", "display.figures", "api.opened"},
    "filelock": {"data.arrays"},
    "pillow_heif": {"data.image_files"},
    "onnx": {"train.conversion"},
    "tf2onnx": {"train.conversion"},
    "onnxruntime": {"train.conversion"},
    "optuna": {"suggest"},
}
PURE = ("spec", "plans", "board", "race", "words", "documents", "errors", "metrics", "runs.result", "runs.threshold")
IO = {"ray", "tensorflow", "keras", "boto3", "botocore", "obstore", "tensorboardX", "mlflow", "optuna", "typer", "rich"}
ROOMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py" and "sample" not in path.parts
)


def within(room: str, places: set[str] | tuple[str, ...]) -> bool:
    """Whether the room is one of these places, or in one of them."""
    return any(room == place or room.startswith(f"{place}.") for place in places)


def imports(node: ast.AST, at_import: bool) -> Iterator[str]:
    """Dotted names that a file imports; at_import: only those that run when the file itself is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (name.name for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: imports are absolute here"
            yield from (f"{child.module}.{name.name}" for name in child.names)
        elif at_import and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        elif not (at_import and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield from imports(child, at_import)


@cache
def source(room: str) -> ast.Module:
    file = ROOT / room.replace(".", "/")
    return ast.parse((file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text(encoding="utf-8"))


@cache
def imported(room: str, at_import: bool = False) -> frozenset[str]:
    """Libraries by their first name, our own rooms as orchestrator.ROOM."""
    found = set()
    for name in imports(source(room), at_import):
        own = [r for r in ROOMS if name == f"orchestrator.{r}" or name.startswith(f"orchestrator.{r}.")]
        found.add(f"orchestrator.{max(own, key=len)}" if own else name.partition(".")[0])
    return frozenset(found)


def own(room: str, at_import: bool = False) -> set[str]:
    """The rooms that a room imports."""
    names = {name.removeprefix("orchestrator.") for name in imported(room, at_import) if "orchestrator." in name}
    return names - {room}


@cache
def loaded_with(room: str) -> frozenset[str]:
    """All that importing a room imports, through the rooms it imports too."""
    found, todo = set(), [room]
    while todo:
        new = imported(todo.pop(), True) - found
        found |= new
        todo += [name.removeprefix("orchestrator.") for name in new if name.startswith("orchestrator.")]
    return frozenset(found)


def floor(room: str) -> int:
    wing = room.partition(".")[0]
    return next((i for i, wings in enumerate(FLOORS) if wing in wings), len(FLOORS))


def test_the_imports_are_read() -> None:
    """The reader of import statements sees what is known to be there."""
    assert {"spec.reading", "plans.points", "grid", "data.index"} <= set(ROOMS)
    assert "cluster.fanout" in own("driver.line") - own("driver.line", at_import=True)
    assert "keras" in imported("train.model") - imported("train.model", at_import=True)
    assert {"obstore", "orchestrator.board.views"} <= loaded_with("leaderboard")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_its_own_wing_and_those_below(room: str) -> None:
    """However deep in a function the import stands, and for types alone too."""
    wing = room.partition(".")[0]
    assert wing in DOORS or floor(room) < len(FLOORS), "a new wing or door: give it its place above"
    assert [other for other in own(room) if floor(other) >= floor(room) and other.partition(".")[0] != wing] == []


def test_no_files_import_each_other_in_a_circle() -> None:
    """Files that import no remaining file are removed, again and again: none may be left."""
    left = {room: own(room) & set(ROOMS) for room in ROOMS}
    while free := {room for room, needs in left.items() if not needs & left.keys()}:
        left = {room: needs for room, needs in left.items() if room not in free}
    assert left == {}


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_has_its_own_rooms(library: str) -> None:
    """Only cluster knows Ray, only what runs on a worker knows TensorFlow, only the store knows object storage."""
    users = {room for room in ROOMS if library in imported(room)}
    assert users
    assert {room for room in users if not within(room, OWNERS[library])} == set()


@pytest.mark.parametrize("room", [room for room in ROOMS if within(room, PURE)])
def test_a_pure_room_loads_nothing_heavy(room: str) -> None:
    """Not even through another room: it can be used, and tested, anywhere. board needs pyarrow for its tables."""
    tables = set() if within(room, ("board",)) else {"pyarrow"}
    stores = {name for name in loaded_with(room) if name.startswith("orchestrator.store")}
    assert loaded_with(room) & (IO | tables) | stores == set()


@pytest.mark.parametrize("room", [room for room in ROOMS if not within(room, ("train", "cluster", "data"))])
def test_the_driver_loads_neither_tensorflow_nor_ray(room: str) -> None:
    """What a laptop runs before any training starts is quick; of object storage it loads obstore alone."""
    assert loaded_with(room) & {"ray", "tensorflow", "keras", "boto3", "botocore", "tensorboardX", "mlflow"} == set()


@pytest.mark.parametrize("room", [room for room in ROOMS if within(room, ("train",))])
def test_training_knows_nothing_of_the_cluster(room: str) -> None:
    """A trial can be run, and resumed, by a plain function call."""
    assert {name for name in loaded_with(room) if name == "ray" or name.startswith("orchestrator.cluster")} == set()


CLUSTER = [room for room in ROOMS if within(room, ("cluster",)) and room != "cluster.patches"]


def private(room: str) -> set[str]:
    """What a file uses of Ray's private modules, and of other objects' private attributes."""
    modules = {name for name in imports(source(room), False) if name.startswith("ray.") and "._" in name}
    attributes = {
        ast.unparse(node)
        for node in ast.walk(source(room))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }
    return modules | {name for name in attributes if not name.startswith(("self.", "cls.", "os."))}


@pytest.mark.parametrize("room", CLUSTER)
def test_what_ray_keeps_private_is_touched_in_one_file(room: str) -> None:
    """cluster.patches says of each what it changes, why, and which test would tell; so no other file may."""
    assert {"ray._private.worker", "tune_controller._pending_trials"} <= private("cluster.patches")
    assert private(room) == set()


@pytest.mark.parametrize("room", CLUSTER)
def test_ray_is_imported_after_its_environment_is_set(room: str) -> None:
    """Ray reads some variables as it is imported, and cluster.patches sets them."""
    names = list(imports(source(room), True))
    ray = [i for i, name in enumerate(names) if name.partition(".")[0] == "ray"]
    assert not ray or "orchestrator.cluster.patches" in names[: ray[0]]


RUN = """
import contextlib, io, os, runpy, sys
os._exit = sys.exit  # or nobody would be left to look
out = io.StringIO()
if sys.argv[1] == "orchestrator":
    import orchestrator
else:
    sys.argv[0] = "x"
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_module(sys.argv.pop(1), run_name="__main__")
    assert "batch_size" in out.getvalue() or "RUN" in out.getvalue(), out.getvalue()
print(*sorted({"ray", "tensorflow", "keras", "boto3"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["orchestrator"],
        ["orchestrator.grid", "--plan"],
        ["orchestrator.leaderboard", "--help"],
        ["orchestrator.report", "--help"],
    ],
)
def test_a_command_that_trains_nothing_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    """`grid --plan`, `leaderboard`, `report` and `import orchestrator` load neither TensorFlow, Ray nor boto3."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
    assert list(tmp_path.iterdir()) == []


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest imports a test file by its bare name, so two of one name fail as soon as both folders are collected."""
    names = Counter(file.name for file in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
