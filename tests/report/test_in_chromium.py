"""The HTML of `dise report` in a browser: nothing is fetched, nothing fails, and everyone can read it."""

import shutil

import pytest

pytest.importorskip("playwright")
from axe_playwright_python.sync_playwright import Axe
from matplotlib.figure import Figure
from playwright.sync_api import sync_playwright

from dise_experiments.common.table import Table
from dise_experiments.run.page import page

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; `make test-report` installs it")

WIDE = Table(
    "Table 1: many columns <of> “text”",
    ["run", *(f"column {i} with a long name" for i in range(14))],
    [[f"run-seed{j}", *(f"0.{i:04d} ± 0.0010" for i in range(14))] for j in range(30)],
    "A note & more.\nOf two lines.",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with wide tables, a figure and long commands."""
    folder = tmp_path_factory.mktemp("report")
    figure = Figure(figsize=(12, 4))
    figure.add_subplot().plot([1, 2, 3])
    figure.savefig(folder / "figure.png")
    other = Table("Selections", ["run", "data"], [["run-seed0", "held-out"]])
    commands = ["dise run mnist --preset cpu " + "--set name=value " * 20]
    html = page(
        "mnist, preset cpu",
        [WIDE, other],
        [(folder / "figure.png", "A figure")],
        summary=["DISE: good"],
        commands=commands,
    )
    (folder / "report.html").write_text(html, encoding="utf-8")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(params=[(width, scheme) for width in (360, 1400) for scheme in ("light", "dark")], ids=str)
def opened(request, browser, report):
    """The page at a width in a colour scheme, the console's messages and the addresses that it asked for."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab, messages, addresses = context.new_page(), [], []
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.on("request", lambda request: addresses.append(request.url))
    tab.goto(report.as_uri())
    yield tab, messages, addresses, width
    context.close()


def test_nothing_fails_and_nothing_is_fetched(opened, report):
    tab, messages, addresses, _ = opened
    tab.wait_for_load_state("networkidle")
    assert messages == []
    assert [address for address in addresses if not address.startswith("data:")] == [report.as_uri()]
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_contrast_landmarks_names_and_order(opened):
    found = Axe().run(opened[0])
    assert {rule["id"]: len(rule["nodes"]) for rule in found.response["violations"]} == {}
    passed = {rule["id"] for rule in found.response["passes"]}
    assert {"color-contrast", "landmark-one-main", "image-alt", "region", "scrollable-region-focusable"} <= passed


def test_the_page_is_as_wide_as_the_screen_and_tables_scroll(opened):
    tab, _, _, width = opened
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("document.querySelector('.scroll').scrollWidth > document.querySelector('.scroll').clientWidth")


def test_colours_follow_the_scheme(browser, report):
    seen = set()
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        tab = context.new_page()
        tab.goto(report.as_uri())
        seen.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    assert len(seen) == 2


def test_links_of_the_contents_lead_to_their_tables(opened):
    tab = opened[0]
    for link in tab.locator("nav a").all():
        assert tab.locator(f"[id='{link.get_attribute('href')[1:]}']").count() == 1
