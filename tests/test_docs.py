"""The code in the documentation runs, its numbers are measured ones, and every name is found in it."""

import importlib
import pkgutil
import re
import runpy
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch

import dise

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if "```python\n" in page.read_text()]
LONG = {  # they compile or certify
    "certified-sampler.md",
    "compile.md",
    "diffusers.md",
    "getting-started.md",
    "make-dynamic.md",
    "what-can-go-wrong.md",
    "which-policy.md",
}


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.long] * (page.name in LONG)) for page in WITH_CODE],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_python_blocks_of_a_page_run_in_one_go(page, monkeypatch, tmp_path):
    if page.parent.name == "clients":  # named by their library, which `make test-clients` installs
        pytest.importorskip(page.stem)
        monkeypatch.chdir(tmp_path)  # sbi writes logs
    torch.manual_seed(0)
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    assert code
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


def packages():
    """The library and each of its packages that lists public names."""
    names = ["dise", *(found.name for found in pkgutil.walk_packages(dise.__path__, "dise.") if found.ispkg)]
    return [module for module in map(importlib.import_module, names) if hasattr(module, "__all__")]


@pytest.mark.parametrize("module", packages(), ids=lambda module: module.__name__)
def test_the_reference_describes_all_that_is_public(module):
    described, public = reference(), {name: getattr(module, name) for name in module.__all__}
    things = {name: x for name, x in public.items() if getattr(x, "__module__", "").startswith("dise")}
    assert things
    assert [name for name, thing in things.items() if id(thing) not in described] == []


def test_entries_of_the_glossary_lead_to_the_reference():
    described, text = reference(), (ROOT / "docs" / "glossary.md").read_text()
    named = re.findall(r"\]\[(dise[\w.]*)\]", text)
    assert len(named) > 20
    assert [name for name in named if id(pkgutil.resolve_name(name)) not in described] == []


@pytest.mark.parametrize("symbol", ["k1", "Γ", "Δ", "M", "α", "β", "ε", "δ", "μ", "κ", "λ", "NFE"])
def test_the_glossary_explains_a_symbol(symbol):
    assert re.search(rf"^\| {symbol}(?:,[^|]*)? \|", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)


def test_words_of_the_glossary_are_in_order():
    words = re.findall(r"^(\S.*)\n:   ", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert len(words) > 30
    assert words == sorted(words, key=str.lower)


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r": (\S+\.(?:md|ipynb))$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = [page for page in (ROOT / "docs").rglob("*") if page.suffix in (".md", ".ipynb")]
    assert named == {str(page.relative_to(ROOT / "docs")) for page in pages}


def test_the_architecture_page_names_the_folders_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text[text.index("<!-- folders") : text.index("<!-- end -->")]
    named = set(re.findall(r"^\| `([\w/]+)/` \|", table, re.MULTILINE))
    library = ROOT / "src" / "dise"
    assert named == {str(file.parent.relative_to(library)) for file in library.rglob("*/__init__.py")}


@pytest.mark.parametrize("wing", ["library", "integrate", "select"])
def test_the_architecture_page_has_the_floors_that_lint_checks(wing):
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = re.search(rf"\| floor \| of (?:the )?`?{wing}`? \|\n\| --- \| --- \|\n((?:\|.*\n)+)", text)[1]
    shown = [re.findall(r"`(\w+)`", row) for row in table.splitlines()]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (c["layers"] for c in contracts if wing in c["name"].lower() and c["type"] == "layers")
    assert shown == [[name.removeprefix("dise.") for name in layer.split(" | ")] for layer in layers]


def test_files_and_folders_that_the_architecture_page_speaks_of_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    outside = re.findall(r"`((?:experiments|tests|benchmarks|docs|results)/[\w/.]*)`", text)
    assert len(outside) >= 5
    assert [name for name in outside if not (ROOT / name).exists()] == []
    inside = re.findall(r"`(\w+\.py)`", text)
    assert [name for name in inside if not list((ROOT / "src" / "dise").rglob(name))] == []


@pytest.fixture
def figure(monkeypatch):
    """figure(name): the names that a figure's script defines."""
    monkeypatch.syspath_prepend(str(FIGURES))
    return lambda name: runpy.run_path(str(FIGURES / f"{name}.py"))


def test_the_readmes_table_is_what_the_script_writes(figure):
    readme, front_page = (ROOT / "README.md").read_text(), figure("front_page")
    assert front_page["table"]() in readme
    assert front_page["with_table"](readme) == readme
    assert front_page["with_table"](readme.replace("99.27 %", "99.99 %")) == readme


def test_every_figure_has_a_script_and_a_page():
    drawn = {file.stem for file in FIGURES.glob("*.py")} - {"__main__", "style"}
    image = re.compile(r"!\[[^\]]+\]\([\w./]*figures/(\w+)\.svg\)")  # with a text for those who cannot see it
    shown = {name for page in PAGES for name in image.findall(page.read_text())}
    assert {file.stem for file in FIGURES.glob("*.svg")} == drawn == shown
    assert all(file.stat().st_size < 100_000 for file in FIGURES.glob("*.svg"))


@pytest.mark.parametrize("name", ["event", "front_page", "guarantee", "steps"])  # those drawn within a second
def test_a_script_draws_its_figure(name, figure, tmp_path):
    script = figure(name)
    script["save"](script["draw"], tmp_path / f"{name}.py")
    assert (tmp_path / f"{name}.svg").read_text().count("<path") > 5
