"""The report's pages: sound HTML, and what a browser makes of them (skipped where there is none; see browser.py)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browser import ROOT, Browser, find_axe, find_chromium

from gkp.artifact import claims
from gkp.artifact.html_report import COLUMNS, QUESTIONS, TONES, html_report
from gkp.artifact.leaderboard import leaderboard
from gkp.evaluation.robustbench.schema import check_entry

NOTEBOOKS = ("07_imagenet", "99_verdict")
SIZES = [(width, dark) for width in (390, 1400) for dark in (False, True)]
VOID = {"meta", "input", "img", "br", "link", "hr"}
VERDICTS = pd.read_csv(ROOT / "data" / "verdicts.csv").fillna({"n": 0})


class Page(HTMLParser):
    """Every element as (tag, attributes, tags around it)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, tuple(self._open)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def all(self, *tags: str) -> list[dict[str, str]]:
        return [given for tag, given, _ in self.elements if tag in tags]


def entry(name: str, accuracy: float, **fields: Any) -> dict[str, Any]:
    costs = {"parameters": 270_000, "macs": 40_000_000, "latency": {"seconds": 0.002, "threads": 1, "batch_size": 1}}
    made = {"name": name, "dataset": "cifar10", "threat_model": "Linf", "eps": "1/255", "clean_acc": "90.00", "n": 1000}
    interval = {"best_known": [accuracy - 2, accuracy + 2]}
    return check_entry({**made, "external": f"{accuracy:.2f}", "interval": interval, **costs, **fields}, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of the committed verdicts with two of the notebooks and a leaderboard."""
    root = tmp_path_factory.mktemp("checkout")
    built = root / "build" / "cifar10"
    built.mkdir(parents=True)
    (root / "data").symlink_to(ROOT / "data")
    (root / "figures").symlink_to(ROOT / "figures")
    for name in NOTEBOOKS:
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", built)
    rows = [entry("a", 40.0), entry("b", 30.0, macs=20_000_000), entry("c", 20.0, macs=30_000_000, latency=None)]
    leaderboard(rows, built / "leaderboard.html")
    return html_report("cifar10", root=root, out=root / "report").index.parent


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "index.html").read_text())


# --- without a browser ----------------------------------------------------------------------------------------------


def test_headings_descend_one_level_at_a_time_from_one_title(page: Page):
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))


def test_readers_that_do_not_see_the_page_are_told_what_is_what(page: Page):
    assert page.all("html")[0]["lang"] == "en" and page.all("title") and len(page.all("main")) == 1
    assert all(given.get("aria-label") for given in page.all("nav", "form"))
    assert all(given["scope"] in ("row", "col") for given in page.all("th"))
    assert all(given.get("alt") for given in page.all("img"))
    assert all("label" in around for tag, _, around in page.elements if tag in ("input", "select"))
    ids = [given["id"] for _, given, _ in page.elements if "id" in given]
    assert len(ids) == len(set(ids))
    assert {given["aria-labelledby"] for _, given, _ in page.elements if "aria-labelledby" in given} <= set(ids)


def test_every_link_leads_somewhere(folder: Path, page: Page):
    ids = {given["id"] for _, given, _ in page.elements if "id" in given}
    links = [given["href"] for given in page.all("a")]
    assert {"leaderboard.html", "99_verdict.html"} <= set(links)
    for link in links:
        file, _, part = link.partition("#")
        assert (folder / file).is_file() if file else part.split("&")[0] in ids, link
    assert {link for link in links if "&" in link} == {
        f"#every-claim&board={board}&verdict={verdict.replace(' ', '+')}"
        for board, verdict in VERDICTS[["board", "verdict"]].drop_duplicates().itertuples(index=False)
    }
    for name in NOTEBOOKS:
        assert '<a href="index.html">' in (folder / f"{name}.html").read_text()


def test_headlines_stand_before_the_main_claims_and_those_before_all_others(folder: Path):
    text = (folder / "index.html").read_text()
    marks = [*(f'aria-label="{line}"' for line in claims.headlines(VERDICTS)), 'id="main-claims"', 'id="every-claim"']
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    assert text.count('<tr id="claim-') == len(VERDICTS) and text.count('aria-label="evidence of ') == len(claims.MAIN)


def test_every_board_has_its_question_and_every_verdict_its_colour():
    assert tuple(QUESTIONS) == claims.BOARDS
    assert set(TONES) == {*(verdict for board in claims.VERDICTS.values() for verdict in board), claims.NO_VERDICT}


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """By the formula of WCAG 2: 21 for black on white."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_has_a_contrast_of_four_and_a_half_in_light_and_dark():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") < 4.5
    style = (ROOT / "gkp" / "artifact" / "page.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in style.split("prefers-color-scheme: dark", 1))
    assert light.keys() == dark.keys()
    for theme in (light, dark):
        pairs = [(text, paper) for text in ("ink", "quiet", "link") for paper in ("paper", "stripe")]
        pairs += [(tone, f"{tone}-wash") for tone in set(TONES.values())]
        for text, paper in pairs:
            assert contrast(theme[text], theme[paper]) >= 4.5, (text, paper)


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    tab = Browser(find_chromium(), tmp_path_factory.mktemp("browser"))
    yield tab
    tab.close()


def faults(browser: Browser, address: str, width: int, dark: bool = False) -> list[str]:
    """What is wrong with a page at this width: requests that leave it, complaints, a body that scrolls sideways."""
    browser.open(address, width=width, dark=dark)
    found = [f"asks for {url}" for url in browser.requests if not url.startswith(("file:", "data:"))]
    found += [f"complains: {text}" for text in browser.complaints]
    wide = browser.evaluate("document.documentElement.scrollWidth")
    return found + ([f"is {wide} pixels wide in a window of {width}"] if wide > width else [])


def barriers(browser: Browser) -> list[str]:
    """What axe-core finds on the page that is open."""
    browser.evaluate(f"{find_axe()}; 0")
    run = "axe.run().then(found => JSON.stringify(found.violations.map(v => [v.id, v.nodes[0].html.slice(0, 200)])))"
    return [f"{rule}: {where}" for rule, where in json.loads(browser.evaluate(run))]


@pytest.mark.parametrize("name", ["index", "leaderboard", *NOTEBOOKS])
def test_a_page_loads_nothing_else_and_fits_phones_and_screens(browser: Browser, folder: Path, name: str):
    address = (folder / f"{name}.html").as_uri()
    papers = {}
    for width, dark in SIZES:
        assert faults(browser, address, width, dark) == [], (width, dark)
        assert [url for url in browser.requests if not url.startswith("data:")] == [address]
        papers[width, dark] = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert papers[390, False] == papers[1400, False] == "rgb(255, 255, 255)"
    assert papers[390, True] == papers[1400, True] and papers[390, True] != papers[390, False]


@pytest.mark.parametrize("name", ["index", "leaderboard", *NOTEBOOKS])
def test_axe_finds_no_barrier(browser: Browser, folder: Path, name: str):
    for width, dark in SIZES:
        browser.open((folder / f"{name}.html").as_uri(), width=width, dark=dark)
        browser.evaluate("for (const fold of [...document.querySelectorAll('details')].slice(0, 3)) fold.open = true")
        assert barriers(browser) == [], (width, dark)


def test_faults_and_barriers_would_be_seen(browser: Browser, tmp_path: Path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<!DOCTYPE html><html lang="en"><title>x</title><main><h1>x</h1><p style="color: #ccc; width: 600px">pale</p>'
        '<img src="http://example.invalid/x.png" alt="x"><script>console.warn("oh"); undefinedName;</script></main></html>'
    )
    found = "; ".join(faults(browser, bad.as_uri(), 390))
    for what in ("asks for http://example.invalid/x.png", "warning: ['oh']", "Uncaught", "pixels wide in a window of 390"):
        assert what in found, (what, found)
    assert [line.split(":")[0] for line in barriers(browser)] == ["color-contrast"]


ROWS = "[...document.querySelectorAll('#claims tbody tr')].filter(row => !row.hidden)"


def shown(browser: Browser) -> list[str]:
    """Ids of the claims in view, in order."""
    return browser.evaluate(f"{ROWS}.map(row => row.id.slice(6))")


@pytest.mark.parametrize("key, kind", [(key, kind) for key, _, kind in COLUMNS])
def test_a_click_sorts_by_a_column_and_another_turns_it_round(browser: Browser, folder: Path, key: str, kind: str):
    browser.open((folder / "index.html").as_uri())
    column = [name for name, _, _ in COLUMNS].index(key)
    found = {}
    for direction, sign in (("ascending", 1), ("descending", -1)):
        browser.evaluate(f"document.querySelector('#claims th[data-key={key}] button').click()")
        values = browser.evaluate(f"{ROWS}.map(row => row.cells[{column}].dataset.sort)")
        there = [value for value in values if value != ""]
        assert values[: len(there)] == there  # what is missing stays last
        if kind == "number":
            assert [float(value) for value in there] == sorted(map(float, there), reverse=sign < 0)
        else:
            steps = browser.evaluate(f"{json.dumps(there)}.map((value, i, all) => i ? all[i - 1].localeCompare(value) : 0)")
            assert all(sign * step <= 0 for step in steps)
        assert browser.evaluate(f"document.querySelector('#claims th[data-key={key}]').ariaSort") == direction
        assert browser.evaluate("location.hash") == f"#claims,{key},{direction}"
        found[direction] = shown(browser)
    assert set(found["ascending"]) == set(found["descending"]) == set(VERDICTS["id"])
    assert len(set(VERDICTS[key].dropna())) == 1 or found["ascending"] != found["descending"]


def typed(browser: Browser, name: str, value: str) -> None:
    field = f"document.querySelector('[name={name}]')"
    browser.evaluate(f"{field}.value = {value!r}, {field}.dispatchEvent(new Event('input'))")


def test_words_and_choices_filter_together_and_the_address_keeps_them(browser: Browser, folder: Path):
    address = (folder / "index.html").as_uri()
    browser.open(address)
    assert len(shown(browser)) == len(VERDICTS)
    typed(browser, "words", "snaking TMI-GKP")
    by_words = shown(browser)
    assert "snaking-cheaper" in by_words and 0 < len(by_words) < len(VERDICTS)
    typed(browser, "verdict", "holds")
    both = shown(browser)
    assert both == [name for name in by_words if name in set(VERDICTS.loc[VERDICTS["verdict"] == "holds", "id"])]
    assert browser.evaluate("document.querySelector('#count').textContent") == f"{len(both)} of {len(VERDICTS)} claims"
    browser.evaluate("document.querySelector('#claims th[data-key=minutes] button').click()")
    kept = browser.evaluate("location.hash")
    assert kept == "#claims,minutes,ascending&words=snaking+TMI-GKP&verdict=holds"
    order = shown(browser)
    browser.open(address + kept)
    assert shown(browser) == order and set(order) == set(both)
    browser.evaluate("document.querySelector('form').reset(), new Promise(done => setTimeout(done, 20))")
    assert len(shown(browser)) == len(VERDICTS) and browser.evaluate("location.hash") == "#claims,minutes,ascending"


def test_an_address_opens_one_claim_or_those_of_one_verdict(browser: Browser, folder: Path):
    address = (folder / "index.html").as_uri()
    browser.open(f"{address}#claim-fragility")
    row = "document.querySelector('#claim-fragility')"
    assert browser.evaluate(f"{row}.querySelector('details').open")
    assert -1 < browser.evaluate(f"{row}.getBoundingClientRect().top") < 900
    command = VERDICTS.set_index("id").loc["fragility", "command"]
    assert browser.evaluate(f"{row}.querySelector('code').textContent") == command
    browser.open(address)
    browser.evaluate("document.querySelector('a[href*=\"board=consistency&verdict=inconsistent\"]').click()")
    browser.evaluate("new Promise(done => setTimeout(done, 50))")
    wanted = VERDICTS[(VERDICTS["board"] == "consistency") & (VERDICTS["verdict"] == "inconsistent")]
    assert shown(browser) == wanted["id"].tolist()


@pytest.mark.parametrize(
    "hash_", ["#claims,nothing,ascending", "#claims,minutes,sideways&verdict=maybe", "#%E0%A4%A", "#,,&&="]
)
def test_an_address_that_means_nothing_shows_every_claim_without_complaint(browser: Browser, folder: Path, hash_: str):
    assert faults(browser, (folder / "index.html").as_uri() + hash_, 1400) == []
    assert shown(browser) == VERDICTS["id"].tolist()


def test_every_claim_can_be_read_on_a_phone_with_its_evidence(browser: Browser, folder: Path):
    browser.open((folder / "index.html").as_uri(), width=390)
    row = "document.querySelector('#claim-fragility')"
    labels = browser.evaluate(f"[...{row}.cells].map(cell => getComputedStyle(cell, '::before').content)")
    assert labels[2:] == [f'"{heading}"' for _, heading, _ in COLUMNS][2:]
    widths = browser.evaluate(f"[...{row}.cells].map(cell => cell.getBoundingClientRect().right)")
    assert max(widths) <= 390
    assert browser.evaluate("[...document.querySelectorAll('#claims thead button')].every(one => one.offsetWidth > 0)")
