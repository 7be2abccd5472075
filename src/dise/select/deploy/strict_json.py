"""JSON that every parser reads: numbers that JSON does not have are text."""

import json
import math
from typing import Any

from dise.integrate.value import is_whole

NAMES = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
"""As in the JSON form of Protocol Buffers."""


def dumps(values: Any, **options: Any) -> str:
    """`json.dumps`, with infinite numbers and NaN as "Infinity", "-Infinity" and "NaN"."""
    return json.dumps(to_json(values), allow_nan=False, **options)


def loads(text: str) -> Any:
    """`json.loads`, with those three texts, and the bare words that Python writes for them, as numbers."""
    return of_json(json.loads(text))


def to_json(values: Any) -> Any:
    """Values that JSON has."""
    if isinstance(values, dict):
        return {key: to_json(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [to_json(value) for value in values]
    if is_whole(values):  # NumPy's, too
        return int(values)
    if isinstance(values, float) and not math.isfinite(values):
        return "NaN" if math.isnan(values) else "Infinity" if values > 0 else "-Infinity"
    return values


def of_json(values: Any) -> Any:
    """What `to_json` was given, but for lists in place of tuples."""
    if isinstance(values, dict):
        return {key: of_json(value) for key, value in values.items()}
    if isinstance(values, list):
        return [of_json(value) for value in values]
    return NAMES.get(values, values) if isinstance(values, str) else values
