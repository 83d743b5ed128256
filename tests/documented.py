"""JSON documents, checked against the tables of docs/json.md."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TYPES = {
    "text": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "whole number": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "true or false": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "fields": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}
BOARD = ("grid", "leaderboard")


def described() -> dict[str, dict[str, str]]:
    """Heading of docs/json.md -> path of a field -> its type."""
    text = (ROOT / "docs" / "json.md").read_text()
    sections = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)[1:]
    row = re.compile(r"^\| `([^`]+)` \| ([^|]+) \|", re.MULTILINE)  # events have theirs in a third column
    return {name: dict(row.findall(body)) for name, body in zip(sections[::2], sections[1::2], strict=True)}


def is_a(value: Any, kind: str) -> bool:
    each = kind.removeprefix("list of ")
    if each != kind:
        return isinstance(value, list) and all(is_a(one, each) for one in value)
    return any(TYPES[name](value) for name in (kind.split(" or ") if kind not in TYPES else [kind]))


def wrong(value: Any, fields: dict[str, str], path: str = "") -> Iterator[str]:
    """Where a document is not as described: fields that are missing, unknown, or of another type."""
    if isinstance(value, list):
        for each in value:
            yield from wrong(each, fields, f"{path}[]")
    if not isinstance(value, dict):
        return
    below = f"{path}." if path else ""
    own = {name for name in fields if name.startswith(below) and not re.search(r"[.\[]", name[len(below) :])}
    yield from (f"{name} is missing" for name in own if name[len(below) :] not in value)
    for key, each in value.items():
        kind = fields.get(name := f"{below}{key}")
        if kind is None or not is_a(each, kind):
            yield f"{name} is {each!r:.60}, and must be {kind}"
        elif "object" not in kind:
            yield from wrong(each, fields, name)


def checked(text: str) -> dict[str, Any]:
    """The one document in a text, as docs/json.md has it."""
    tree = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    docs = described()
    fields = docs["every document"] | docs[tree["kind"]] | (docs["the board"] if tree["kind"] in BOARD else {})
    assert [*wrong(tree, fields)] == []
    assert tree["schema"] == 1
    return tree
