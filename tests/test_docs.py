"""The code in the documentation runs, and says what the numbers are."""

import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import dise.integrate
import dise.select
import dise.torchdiffeq

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_of_a_page_run_in_one_go(page, monkeypatch):
    torch.manual_seed(0)
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # torch.compile imports the module of a function
    exec(compile(code, str(page), "exec"), vars(module))


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^\s*make ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named
    assert named <= targets


def reference():
    """The objects that the reference describes: each name of a page, and of a module its public members."""
    described = set()
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for name, chosen in re.findall(r"^::: (\S+)\n(?: +options:\n +members: \[(.*)\])?", page.read_text(), re.M):
            described.add(name)
            thing = pkgutil.resolve_name(name)
            if isinstance(thing, ModuleType):
                own = [n for n, x in vars(thing).items() if n[0] != "_" and getattr(x, "__module__", name) == name]
                described |= {f"{name}.{member}" for member in (chosen.split(", ") if chosen else own)}
    return {id(pkgutil.resolve_name(name)) for name in described}


@pytest.mark.parametrize("module", [dise, dise.integrate, dise.select, dise.torchdiffeq], ids=lambda m: m.__name__)
def test_the_reference_describes_all_that_is_public(module):
    described, public = reference(), {name: getattr(module, name) for name in module.__all__}
    things = {name: x for name, x in public.items() if hasattr(x, "__module__") and x.__module__.startswith("dise")}
    assert len(things) > 3
    assert [name for name, thing in things.items() if id(thing) not in described] == []


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
