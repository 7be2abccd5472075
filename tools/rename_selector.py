"""Rename a selector in stored runs: python tools/rename_selector.py OLD NEW RUN ..."""

import sys
from pathlib import Path
from typing import Any

from dise.select.deploy import strict_json


def renamed(value: Any, names: dict[str, str]) -> Any:
    """JSON data with every key and every text that is one of the names replaced."""
    if isinstance(value, dict):
        return {names.get(key, key): renamed(part, names) for key, part in value.items()}
    if isinstance(value, list):
        return [renamed(part, names) for part in value]
    return names.get(value, value) if isinstance(value, str) else value


def rename(run: Path, old: str, new: str) -> None:
    """Rename a selector in a run's selection, metrics, times and weights. Numbers stay as they are."""
    forms = ("{}", "DISE ({})", "random, mix of {}")
    names = {form.format(old): form.format(new) for form in forms}
    for file in (run / name for name in ("selection.json", "metrics.json", "timing.json")):
        if file.exists():
            file.write_text(strict_json.dumps(renamed(strict_json.loads(file.read_text()), names), indent=2) + "\n")
    weights = run / f"selector-{old}.safetensors"
    if weights.exists():
        weights.rename(weights.with_stem(f"selector-{new}"))


if __name__ == "__main__":
    for folder in sys.argv[3:]:
        rename(Path(folder), *sys.argv[1:3])
