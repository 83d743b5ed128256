"""model: finding a user's function and reading what it takes, without running a line of it."""

import sys
from pathlib import Path

import pytest

from orchestrator.errors import BadInput
from orchestrator.spec.code import read_code


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
    code = read_code("small_cnn", ["dropout", "l2"])
    assert code.defaults == {"dropout": 0.0, "l2": 0.0}
    assert len(code.digest) == 64


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
