import base64
import re

import pytest

from dise_experiments.common.table import Table
from dise_experiments.run.config import RunConfig
from dise_experiments.run.page import page

TABLE = Table("Title <1>", ["run", "value"], [["a & b", "0.5"], ["<script>", "none"]], "Note < 2")


def made(tables=(TABLE,), figures=(), **options):
    return page("name", tables, figures, **({"summary": [], "commands": []} | options))


def test_text_is_escaped():
    html = made(summary=["<b>"], commands=["dise run <x>"])
    assert "<script>" not in html
    for text in ("Title &lt;1&gt;", "a &amp; b", "&lt;script&gt;", "Note &lt; 2", "&lt;b&gt;", "dise run &lt;x&gt;"):
        assert text in html


@pytest.mark.parametrize(
    ("cell", "numeric"),
    [
        *(
            (text, True)
            for text in ("0.5", "-3", "1e-05", "12 %", "97.1%", "4.5×", "0.91 ± 0.02", "1,024", "0.8278*", "–")
        ),
        *((text, False) for text in ("none", "Euler(2)", "0.5 of 2", "odenet-error-seed0", "")),
    ],
)
def test_numbers_are_aligned(cell, numeric):
    html = made([Table("t", ["run", "x"], [["a", cell]])])
    assert ('<td class="number">' in html) is numeric


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "image/png"), (".gif", "image/gif"), (".svg", "image/svg+xml")])
def test_figures_are_inside_and_described(tmp_path, suffix, kind):
    file = tmp_path / f"x{suffix}"
    file.write_bytes(b"figure")
    html = made(figures=[(file, "what it shows")])
    assert f'src="data:{kind};base64,{base64.b64encode(b"figure").decode()}" alt="what it shows"' in html


def test_nothing_refers_to_another_place():
    assert re.findall(r"(?:src|href|url\()\s*=?\s*[\"']?(?!data:|#)[a-z/]", made()) == []


def test_the_environment_is_told():
    html = made()
    for name in ("dise", "revision", "torch", "Python", "system"):
        assert f"<dt>{name}</dt><dd>" in html


@pytest.mark.parametrize(
    "options",
    [
        {"model": "odenet", "reg": "none"},
        {"model": "odenet", "reg": "error", "weight": 0.5, "reduce": "sum", "seed": 3},
        {"model": "resnet", "reg": "none", "changes": ["epochs=3"]},
    ],
)
def test_a_run_tells_its_command(options):
    config = RunConfig.of("mnist", "cpu", **options)
    words = config.command.split()
    assert words[:3] == ["dise", "run", "mnist"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    again = RunConfig.of(
        "mnist",
        given["--preset"],
        model=given["--model"],
        reg=given["--reg"],
        weight=float(given["--weight"]) if "--weight" in given else None,
        reduce=given.get("--reduce"),
        seed=int(given["--seed"]),
        changes=[given["--set"]] if "--set" in given else [],
    )
    assert again == config
