"""Functions: a model function of a notebook, with all that it uses, as a file that workers can import."""

import ast
import builtins
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from orchestrator.errors import BadInput

_MARK = (
    "# Made by orchestrator.run from a notebook's functions: change them there. This file is written anew each time."
)


def name_of(model: Callable[..., Any]) -> str:
    """What a spec calls this function: `module:function`. One of a notebook is written into a file first.

    That file is <function>_model.py in the current folder. Raises BadInput for what cannot be imported by a worker.
    """
    if not isinstance(model, FunctionType) or "." in model.__qualname__ or model.__name__ == "<lambda>":
        raise BadInput(f"model must be a function that a module or a notebook defines by name, got {model!r}")
    if model.__module__ != "__main__":
        return f"{model.__module__}:{model.__name__}"
    module = f"{model.__name__}_model"
    path, text = Path(f"{module}.py"), "\n\n\n".join([_MARK, *_parts(model)]) + "\n"
    before = path.read_text(encoding="utf-8") if path.exists() else None
    if before is not None and not before.startswith(_MARK):
        raise BadInput(
            f"{path} must not be there, or be of orchestrator.run: rename it, or the function {model.__name__}"
        )
    if before != text:
        path.write_text(text, encoding="utf-8")
        sys.modules.pop(module, None)
    return f"{module}:{model.__name__}"


def _parts(model: FunctionType) -> Iterator[str]:
    """What a file needs that defines the function: imports, then the sources of what it uses, then its own."""
    imports: dict[str, None] = {}
    sources: dict[str, str] = {}
    _gather(model, imports, sources)
    if imports:
        yield "\n".join(imports)
    yield from sources.values()


def _gather(thing: Any, imports: dict[str, None], sources: dict[str, str]) -> None:
    """Add the source of a function or class of the notebook, after all that it uses."""
    name = thing.__name__
    try:
        source = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        raise BadInput(f"the source of {name} must be readable, and is not: define it in a cell or in a file") from None
    if free := getattr(getattr(thing, "__code__", None), "co_freevars", ()):
        raise BadInput(f"{name} must not use {free[0]} of the function around it: make it an argument with a default")
    sources[name] = ""  # its place, should it use itself
    state = sys.modules["__main__"].__dict__
    for used in _names(source):
        if used in sources or used not in state:
            continue
        value = state[used]
        if isinstance(value, ModuleType):
            imports[f"import {value.__name__}" + (f" as {used}" if value.__name__ != used else "")] = None
        elif (home := getattr(value, "__module__", None)) and hasattr(value, "__name__") and home != "__main__":
            own = value.__name__
            imports[f"from {home} import {own}" + (f" as {used}" if own != used else "")] = None
        elif isinstance(value, FunctionType | type):
            _gather(value, imports, sources)
        else:
            raise BadInput(
                f"{name} must not use {used}, which is of the notebook and may change: write its value into the "
                f"function, or make it an argument with a default"
            )
    del sources[name]
    sources[name] = source.rstrip()


def _names(source: str) -> list[str]:
    """The names that code reads and does not define itself, in order."""
    tree = ast.parse(source)
    read = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    own = {node.id for node in read if isinstance(node.ctx, ast.Store)} | {
        node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)
    }
    names = dict.fromkeys(node.id for node in read if node.id not in own and not hasattr(builtins, node.id))
    return list(names)
