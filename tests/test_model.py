"""model: finding a user's function and reading what it takes, without running a line of it."""

import hashlib
import sys
from pathlib import Path

import pytest

from orchestrator.errors import BadInput
from orchestrator.spec import code
from orchestrator.spec.code import look_in, read_code
from orchestrator.spec.own_models import OWN_MODELS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, where a user keeps models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def refused(name: str, axes: list[str] | None = None) -> str:
    with pytest.raises(BadInput) as error:
        read_code(name, axes or [])
    assert str(error.value).splitlines() == [str(error.value)]
    return str(error.value)


def test_the_small_cnn_takes_dropout_and_l2():
    """Its arguments and their defaults are read from its source."""
    found = read_code("small_cnn", ["dropout", "l2"])
    assert found.defaults == {"dropout": 0.0, "l2": 0.0}
    assert len(found.digest) == 64


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("(x, filters, stride, squeeze=4)", "(x, filters, stride, squeeze=8)", {"se_resnet"}),
        ('"""Two convolutions beside', '"""2 convolutions beside', {"small_resnet", "large_resnet", "se_resnet"}),
        ("    x = layers.Dropout(dropout)(x)\n    units", "    units", {*OWN_MODELS} - {"small_cnn"}),
    ],
)
def test_a_change_in_one_network_makes_other_trials_of_that_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, changed: set[str]
):
    """Its own function counts, and what that calls: the others keep what is trained."""
    before = {name: read_code(name, []).digest for name in OWN_MODELS}
    assert len({*before.values()}) == len(OWN_MODELS)
    find = code._find_model

    def find_edited(name: str) -> Path:
        text = find(name).read_text()
        assert name == "small_cnn" or text.count(old) == 1
        edited = tmp_path / f"{name}.py"
        edited.write_text(text.replace(old, new) if name != "small_cnn" else text)
        return edited

    monkeypatch.setattr(code, "_find_model", find_edited)
    assert {name for name in OWN_MODELS if read_code(name, []).digest != before[name]} == changed


def test_an_axis_that_the_model_does_not_take_is_named():
    """A misspelt axis is found before anything is trained, with what there is instead."""
    assert refused("small_cnn", ["dropuot"]).startswith(
        "grid.dropuot (did you mean dropout?) must be an argument of the model small_cnn (dropout, l2), image_size, "
    )


def test_plain_defaults_are_read_and_others_are_left_out(folder: Path):
    """Numbers, negative ones too, texts, booleans and None are defaults an axis can stand at; calls are not."""
    (folder / "nets.py").write_text(
        "def net(input_shape, classes, a=1, b=-0.5, c='x', *, d=True, e=None, f=(1, 2), g=print()): ...\n"
    )
    assert read_code("nets:net", ["a", "g"]).defaults == {"a": 1, "b": -0.5, "c": "x", "d": True, "e": None}


def test_a_function_with_double_star_arguments_takes_every_axis(folder: Path):
    """What **kwargs swallows cannot be checked beforehand."""
    (folder / "nets.py").write_text("def net(**kwargs): ...\n")
    assert read_code("nets:net", ["anything"]).defaults == {}


def test_an_argument_without_default_must_be_an_axis(folder: Path):
    """Otherwise every trial would fail at the first call."""
    (folder / "nets.py").write_text("def net(input_shape, classes, units, *, depth): ...\n")
    assert read_code("nets:net", ["depth", "units"])
    assert refused("nets:net", ["units"]).startswith("model nets:net must be given the argument depth, which has no")
    assert refused("nets:net", ["depth"]).startswith("model nets:net must be given the argument units")


def test_a_model_must_take_the_shape_and_the_classes_by_name(folder: Path):
    """What it takes instead is listed; arguments that have no name to call them by do not count."""
    (folder / "nets.py").write_text(
        "def one(shape, n=2): ...\ndef two(): ...\ndef three(input_shape, classes, /): ...\n"
    )
    must = "must take the arguments input_shape and classes, got"
    assert refused("nets:one") == f"model nets:one {must} shape, n"
    assert refused("nets:two") == f"model nets:two {must} none"
    assert refused("nets:three") == f"model nets:three {must} none"


def test_a_missing_module_is_named(folder: Path):
    """Whether the module, its package or a part of it is missing, the line is the same."""
    (folder / "package").mkdir()
    (folder / "single.py").write_text("")
    for module in ("nowhere", "nowhere.below", "package.nowhere", "single.below", "package", "sys"):
        message = refused(f"{module}:net")
        assert message.startswith(
            f"model must name a module that can be imported, got {module}:net: there is no {module}"
        )


def test_a_missing_function_is_answered_with_those_there(folder: Path):
    """Private functions, classes and imported names are not offered."""
    (folder / "nets.py").write_text("from os import path\nclass A: ...\ndef _own(): ...\ndef b(): ...\ndef c(): ...\n")
    (folder / "empty.py").write_text("")
    assert refused("nets:net") == "model must name a function that exists, got nets:net: nets defines b, c"
    assert refused("empty:net").endswith("empty defines none")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"def net(:\n", "line 1 is not Python: "),
        (b"# caf\xe9\n", "must be a Python file in UTF-8: "),
        (b"a = '\x00'\n", "null bytes"),
    ],
)
def test_a_module_that_is_not_python_is_named(folder: Path, source: bytes, says: str):
    """The file and, where known, the line are given."""
    (folder / "broken.py").write_bytes(source)
    message = refused("broken:net")
    assert message.startswith(f"model broken:net: {folder}/broken.py ")
    assert says in message


def test_reading_runs_nothing(folder: Path):
    """Neither the module nor the packages around it are imported: --plan loads no TensorFlow and has no effects."""
    inner = folder / "outer" / "inner"
    inner.mkdir(parents=True)
    for package in (inner.parent, inner):
        (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    (inner / "nets.py").write_text("raise SystemExit('imported')\ndef net(input_shape, classes): ...\n")
    before = set(sys.modules)
    assert read_code("outer.inner.nets:net", [])
    assert refused("outer:net").endswith("outer defines none")
    assert set(sys.modules) == before


HELPERS = {
    "nets.py": "from blocks import block\ndef net(input_shape, classes): ...\n",
    "blocks.py": 'def block(x):\n    """A block."""\n    from pack.deep import inner\n    return inner(x)\n',
    "pack/__init__.py": "",
    "pack/deep.py": "from . import sizes\nimport keras, nets\ndef inner(x): return x * sizes.SIZE\n",
    "pack/sizes.py": "SIZE = 3\n",
    "keras_free.py": "OTHER = 1\n",
}


@pytest.mark.parametrize(
    ("file", "old", "new", "is_another"),
    [
        ("blocks.py", "inner(x)", "inner(x) + 1", True),
        ("pack/sizes.py", "3", "4", True),
        ("pack/__init__.py", "", "import os", True),
        ("blocks.py", "A block.", "Another word\n    for it.", False),
        ("pack/deep.py", "x * sizes.SIZE", "(x *   sizes.SIZE)  # so many", False),
        ("keras_free.py", "1", "2", False),
    ],
)
def test_the_code_that_a_module_imports_decides_too(folder: Path, file: str, old: str, new: str, is_another: bool):
    """Wherever the import stands, and through packages; but not comments, docstrings, or what nobody imports."""
    (folder / "pack").mkdir()
    for name, text in HELPERS.items():
        (folder / name).write_text(text)
    before = read_code("nets:net", []).digest
    (folder / file).write_text(HELPERS[file].replace(old, new))
    assert (read_code("nets:net", []).digest != before) == is_another


def test_a_module_without_imports_of_ones_own_has_the_digest_that_it_always_had(folder: Path):
    """So what is trained stays. A helper that is not Python is named."""
    source = "import os, keras.layers\nfrom numpy import *\ndef net(input_shape, classes): ...\n"
    (folder / "nets.py").write_text(source)
    assert read_code("nets:net", []).digest == hashlib.sha256(source.encode()).hexdigest()
    (folder / "nets.py").write_text(f"import blocks\n{source}")
    (folder / "blocks.py").write_text("def (")
    assert refused("nets:net").startswith(f"model nets:net: {folder}/blocks.py line 1 is not Python: ")


def test_a_folder_beside_is_found_from_the_place_where_modules_are(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    """As in a worker, whose current folder may be another than the driver's."""
    (folder / "specs").mkdir()
    (folder / "specs" / "beside.py").write_text("def net(input_shape, classes): ...\n")
    sys.path.append(str(folder))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    look_in("specs")
    assert read_code("beside:net", [])


def test_the_digest_is_that_of_the_whole_module(folder: Path):
    """A change anywhere in the user's module makes other trials; touching the file does not."""
    file = folder / "nets.py"
    source = "UNITS = 3\ndef net(input_shape, classes): ...\ndef other(input_shape, classes): ...\n"
    file.write_text(source)
    first = read_code("nets:net", []).digest
    file.write_text(source)
    assert read_code("nets:net", []).digest == first
    file.write_text(source.replace("3", "4"))
    assert read_code("nets:net", []).digest != first
