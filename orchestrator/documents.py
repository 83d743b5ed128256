"""Documents: what a command prints for programs, with --json: one JSON document. Pure.

docs/json.md describes every kind. SCHEMA rises where a field goes or means something else, and not where one is added.
"""

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

SCHEMA = 1


def document(kind: str, **fields: Any) -> str:
    """One JSON document. fields: plain values; see docs/json.md for what each kind has."""
    return json.dumps(finite({"schema": SCHEMA, "kind": kind, **fields}), indent=1)


def finite(value: Any) -> Any:
    """The value as JSON can hold it: no NaN, no infinity, times as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value
