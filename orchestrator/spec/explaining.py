"""Explaining: what pydantic finds wrong in a spec, as one line that says what the value must be. Pure."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator.spec.axes import SECTIONS, canonical
from orchestrator.spec.notation import quoted, show
from orchestrator.spec.own_models import OWN_MODELS
from orchestrator.spec.sections import Budget, EarlyStopping, Notify, Race, Resources, Sample, Section, Spec
from orchestrator.words import did_you_mean

# fields that take one of several types, of which each has an error of its own
_EITHER = {
    "learning_rate": "auto or a number above 0",
    "gpus_per_trial": "auto or a number of at least 0",
    "class_weight": "none, balanced, or a number of at least 0 for each class, such as {cat: 1, dog: 19}",
}
_PARTS: dict[str, type[Section]] = {
    **SECTIONS,
    "race": Race,
    "sample": Sample,
    "resources": Resources,
    "budget": Budget,
    "notify": Notify,
}


def explain(error: ValidationError, prefix: str = "") -> str:
    """The first problem as one line: what the value must be, and what it was."""
    problems = error.errors(include_url=False)
    # an unknown key first: if it is a misspelt one, it is the reason why another is missing
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    context = first.get("ctx", {})
    kind = first["type"]
    loc = first["loc"]
    if kind == "missing" and loc and isinstance(loc[-1], int):  # [64], where [64, 64] must be
        loc, kind = loc[:-1], "tuple_type"
    path = prefix
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith(("function-", "literal[", "constrained-", "tuple[")) and part != "float":
            path += f".{quoted(part)}" if path else quoted(part)
    is_secret = "notify" in loc[:1] and "on" not in loc  # whatever stands there may be the address
    got = "another, which is not shown" if is_secret else show(first["input"])
    if kind == "extra_forbidden":
        section: Any = _PARTS.get(str(loc[0]) if len(loc) > 1 else "", Spec)
        section = EarlyStopping if "early_stopping" in loc[:-1] else section
        line = (
            f"{path} is not a known key{did_you_mean(str(loc[-1]), section.model_fields)}; "
            f"known: {', '.join(section.model_fields)}"
        )
    elif kind == "missing":
        line = f"{path} is missing: add it to the spec"
    else:
        line = f"{path} must be {_must_be(kind, context)}, got {got}"
    field = re.sub(r"\.(from|to)$", "", path).rpartition(".")[2].partition("[")[0]  # of a range, its axis
    if kind == "literal_error" and field in _EITHER:
        line, problems = f"{path} must be {_EITHER[field]}, got {got}", problems[:1]
    rest = [each["loc"] for each in problems if each is not first]
    others = dict.fromkeys(".".join(quoted(part) for part in loc if isinstance(part, str)) for loc in rest)
    return line + (f"; also wrong: {', '.join(others)}" if others else "")


def _must_be(kind: str, context: Mapping[str, Any]) -> str:
    whole = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "a text",
        "finite_number": "a finite number",
        "list_type": "a list",
        "dict_type": "a mapping",
        "model_type": "a mapping",
        "model_attributes_type": "a mapping",
        "tuple_type": "[height, width], such as [64, 64]",
        "too_long": "[height, width], such as [64, 64]",
        "web_address": "an address such as https://ntfy.sh/TOPIC",
        "string_pattern_mismatch": f"auto, head, {', '.join(OWN_MODELS)} or package.module:function",
    }
    if kind == "literal_error":
        return f"one of {context['expected']}"
    if kind == "too_short":
        return "a list with at least one value"
    if kind == "string_too_short":
        return "a non-empty text"
    if kind == "string_pattern_mismatch" and "small_cnn" not in context["pattern"]:
        return "letters, digits, '.', '_' and '-' (at most 100, the first a letter or digit)"
    for op, word in (("ge", "of at least"), ("gt", "above"), ("le", "of at most"), ("lt", "below")):
        if op in context:
            return f"{'a whole number' if isinstance(context[op], int) else 'a number'} {word} {canonical(context[op])}"
    return whole.get(kind, f"valid ({kind})")
