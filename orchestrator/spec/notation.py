"""Notation: YAML as specs have it, and values as messages show them. Pure."""

import re
import reprlib
from typing import Any, ClassVar

import yaml

from orchestrator.errors import BadInput


class _Brief(reprlib.Repr):
    """A short repr in YAML's words; cheap even if aliases make the value huge."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 80, 80

    def repr1(self, x: Any, level: int) -> str:
        if x is None or isinstance(x, bool):
            return "null" if x is None else str(x).lower()
        if isinstance(x, int) and abs(x) >= 2**63:
            return f"a number of {x.bit_length()} bits"
        return super().repr1(x, level)


def show(value: Any) -> str:
    """A value in YAML's words, in at most 80 characters."""
    text = _Brief().repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def quoted(name: str) -> str:
    """A key as part of a path, in quotes if needed, so that a message stays on one line."""
    return name if re.fullmatch(r"[\w.-]{1,60}", name) else show(name)


_UNUSED_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "merge", "value", "int", "float")}


class _Loader(yaml.SafeLoader):
    """Plain YAML: no tags, no merged mappings, no repeated keys; numbers are decimal; 1:30 and 2024-01-31 are texts."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc] # the stubs declare it for instances
        first: [(tag, regexp) for tag, regexp in resolvers if tag not in _UNUSED_TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if tag := getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem=f"the tag {tag!r} has no place here", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value == "on":  # which YAML 1.1 takes for true, and notify has as a key
                key.tag = "tag:yaml.org,2002:str"
            if key.tag != "tag:yaml.org,2002:str":
                got = key.value if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
                problem = f"a key must be a text, got {got}: put it in quotes"
            elif key.value in seen:
                problem = f"the key {show(key.value)} stands twice: keep one"
            else:
                seen.add(key.value)
                continue
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


# Numbers as they are written: YAML 1.1 would read 010 as 8, and 1:30 as 90.
_NUMBERS = {
    "int": r"^[-+]?\d[\d_]*$",
    "float": r"^[-+]?((\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+|\d[\d_]*\.\d*|\.\d+|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$",
}


class _Dumper(yaml.SafeDumper):
    """Puts texts in quotes that the loader would read as numbers, such as 0E0."""


for _name, _pattern in _NUMBERS.items():
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", "")))


def write(value: Any) -> str:
    """Plain values -> YAML that `parse` reads back as they were."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None)


def parse(text: str, source: str) -> Any:
    """YAML -> plain values. source: what to call it in errors. Raises BadInput that names line and column."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1} column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise BadInput(f"{source} must be YAML{where}: {problem}") from None
