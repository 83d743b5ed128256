"""Code: finds the source of a model function and reads it, without running it."""

import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput
from orchestrator.spec.axes import AXIS_PATHS
from orchestrator.spec.sections import Scalar

BUILT_IN = ("small_cnn", "head")


@dataclass(frozen=True, slots=True)
class Code:
    """What is known of a model function without running it.

    Attributes:
        digest: SHA-256 of the source: of the function for a model of this package, of the whole file for any other.
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
    path = _find(module, name)
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except SyntaxError as error:
        raise BadInput(f"model {name}: {path} line {error.lineno} is not Python: {error.msg}") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"model {name}: {path} must be a Python file in UTF-8: {error}") from None
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
    own_code = ast.get_source_segment(text, functions[function]) if name in BUILT_IN else text
    return Code(hashlib.sha256((own_code or text).encode()).hexdigest(), _plain_defaults(arguments))


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
    module, _, function = (f"orchestrator.train.model:{name}" if name in BUILT_IN else name).partition(":")
    return module, function


def _find(module: str, name: str) -> Path:
    if name in BUILT_IN:
        return Path(__file__).parents[1] / "train" / "model.py"
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
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
    if not origin or not origin.endswith(".py"):
        raise BadInput(
            f"model must name a module that can be imported, got {name}: there is no {module} in the current "
            f"folder or among the installed packages"
        )
    return Path(origin)
