"""Code: finds the source of a model function and reads it, without running it."""

import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput
from orchestrator.spec.axes import AXIS_PATHS
from orchestrator.spec.own_models import OWN_MODELS
from orchestrator.spec.sections import Scalar

BUILT_IN = (*OWN_MODELS, "head")


@dataclass(frozen=True, slots=True)
class Code:
    """What is known of a model function without running it.

    Attributes:
        digest: SHA-256 of the source: for a model of this package, of its function and of those in its file that it
            calls; for any other, of the whole file, and of the code of the user's modules that it imports.
        defaults: Argument -> its default, if that is a plain value or None.
    """

    digest: str
    defaults: dict[str, Any]


def read_code(name: str, axes: Sequence[str]) -> Code:
    """Find the code of the model `name`.

    axes: names that the function must take besides input_shape and classes. Raises BadInput if the function is missing,
    does not take one of these, or needs another argument.
    """
    module, function = split_name(name)
    text, tree = _parse(_find_model(name), name)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if function not in functions:
        names = ", ".join(n for n in functions if not n.startswith("_")) or "none"
        raise BadInput(f"model must name a function that exists, got {name}: {module} defines {names}")
    arguments = functions[function].args
    takes = [a.arg for a in (*arguments.args, *arguments.kwonlyargs)]
    if arguments.kwarg is None:
        for needed in ("input_shape", "classes"):
            if needed not in takes:
                raise BadInput(
                    f"model {name} must take the arguments input_shape and classes, got {', '.join(takes) or 'none'}"
                )
        own = [a for a in takes if a not in ("input_shape", "classes")]
        for axis in axes:
            if axis not in takes:
                close = difflib.get_close_matches(axis, [*own, *AXIS_PATHS], n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                raise BadInput(
                    f"grid.{axis}{hint} must be an argument of the model {name} ({', '.join(own) or 'it has none'}), "
                    f"image_size, training_images, backbone, unfreeze, or a field of train or augment: rename or "
                    f"remove it"
                )
    for needed in _required(arguments):
        if needed not in ("input_shape", "classes", *axes):
            raise BadInput(
                f"model {name} must be given the argument {needed}, which has no default: "
                f"make it an axis of the grid, or give it a default"
            )
    own_code = [text]
    if name in BUILT_IN:
        own_code = [ast.get_source_segment(text, each) or "" for each in _called(functions, function)]
    parts = [*own_code, *(f"{each}\n{_code(path, name)}" for each, path in local_imports(name).items())]
    return Code(hashlib.sha256("\0".join(parts).encode()).hexdigest(), _plain_defaults(arguments))


def _called(functions: Mapping[str, ast.FunctionDef], name: str) -> list[ast.FunctionDef]:
    """A function of a file, and after it those of this file that it names, directly or not, in their order there."""
    found, todo = {name}, [name]
    while todo:
        names = {node.id for node in ast.walk(functions[todo.pop()]) if isinstance(node, ast.Name)}
        new = (names & functions.keys()) - found
        found |= new
        todo += new
    return [functions[name], *(node for each, node in functions.items() if each in found - {name})]


def _required(arguments: ast.arguments) -> list[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    keyword = [a for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is None]
    return [a.arg for a in (*positional[: len(positional) - len(arguments.defaults)], *keyword)]


def _plain_defaults(arguments: ast.arguments) -> dict[str, Any]:
    pairs = [
        *zip(reversed(arguments.args), reversed(arguments.defaults), strict=False),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    plain = {}
    for argument, default in pairs:
        if default is None:  # a keyword-only argument without a default
            continue
        with contextlib.suppress(ValueError, TypeError):  # not a literal
            value = ast.literal_eval(default)
            if isinstance(value, Scalar | None):
                plain[argument.arg] = value
    return plain


def split_name(name: str) -> tuple[str, str]:
    file = "model" if name in ("small_cnn", "head") else "zoo"
    module, _, function = (f"orchestrator.train.{file}:{name}" if name in BUILT_IN else name).partition(":")
    return module, function


def look_in(folder: str) -> None:
    """Let modules be found in the current folder, and then in this one, which may be relative to it.

    A worker's current folder may be another than the driver's, which is then one of the places for modules.
    """
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)
    found = next((str(Path(place, folder).resolve()) for place in sys.path if Path(place, folder).is_dir()), here)
    if folder != "." and found not in (here, *sys.path):
        sys.path.insert(sys.path.index("" if "" in sys.path else here) + 1, found)


def lies_in(folder: str, name: str) -> bool:
    """Whether the module of the model `name`, or the package around it, was found in this folder."""
    return name not in BUILT_IN and _folder_of(split_name(name)[0], _find_model(name)) == Path(folder).resolve()


def local_imports(name: str) -> dict[str, Path]:
    """Modules of the user's that the module of the model `name` imports, directly or not -> their files, in order.

    They are found by reading import statements, wherever these stand. They lie in the current folder, or where the
    model's module or its package does, unless that is among the installed packages: then in its package alone.
    Raises BadInput for one that is not Python.
    """
    if name in BUILT_IN:
        return {}
    own, found = split_name(name)[0], {}
    files, todo = {own: _find_model(name)}, [own]
    base = _folder_of(own, files[own])
    while todo:
        module = todo.pop()
        for each in _imported(_parse(files[module], name)[1], module, files[module].name == "__init__.py") - {*files}:
            is_ours = each.partition(".")[0] == "orchestrator"
            in_package = each.partition(".")[0] == own.partition(".")[0]
            path = None if is_ours or (base.name.endswith("-packages") and not in_package) else _find(each)
            if path and _folder_of(each, path) in (Path.cwd(), base):
                files[each] = found[each] = path
                todo.append(each)
    return dict(sorted(found.items()))


def _folder_of(module: str, path: Path) -> Path:
    """The folder in which the module, or the package around it, lies."""
    return path.resolve().parents[module.count(".") + (path.name == "__init__.py")]


def _imported(tree: ast.Module, module: str, is_package: bool) -> set[str]:
    """Modules that a file may import: those named, the packages around them, and what may be one of their parts."""
    named = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            if start := ".".join([*above, *([node.module] if node.module else [])]):
                named |= {start, *(f"{start}.{each.name}" for each in node.names)}
    return {each.rsplit(".", cut)[0] for each in named for cut in range(each.count(".") + 1)}


def _code(path: Path, name: str) -> str:
    """The code of a file, without comments, docstrings and how it is laid out."""
    tree = _parse(path, name)[1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _parse(path: Path, name: str) -> tuple[str, ast.Module]:
    """The text of a file of the model `name`, and its syntax tree. Raises BadInput."""
    try:
        text = path.read_text(encoding="utf-8")
        return text, ast.parse(text)
    except SyntaxError as error:
        raise BadInput(f"model {name}: {path} line {error.lineno} is not Python: {error.msg}") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"model {name}: {path} must be a Python file in UTF-8: {error}") from None


def _find_model(name: str) -> Path:
    if name in BUILT_IN:
        return Path(__file__).parents[2].joinpath(*split_name(name)[0].split(".")).with_suffix(".py")
    module = split_name(name)[0]
    if found := _find(module):
        return found
    raise BadInput(
        f"model must name a module that can be imported, got {name}: there is no {module} in the current folder, "
        f"beside the spec, or among the installed packages"
    )


def _find(module: str) -> Path | None:
    """The file of a module; None where there is none in Python."""
    look_in(".")
    top, *below = module.split(".")
    try:
        module_spec = importlib.util.find_spec(top)
    except ValueError:  # a module without a spec, such as __main__
        module_spec = None
    dotted = top
    for part in below:  # step by step: find_spec("a.b") would import a, and so run its code
        dotted += f".{part}"
        places = module_spec.submodule_search_locations if module_spec else None
        module_spec = PathFinder.find_spec(dotted, places) if places else None
    origin = module_spec.origin if module_spec else None
    return Path(origin) if origin and origin.endswith(".py") else None
