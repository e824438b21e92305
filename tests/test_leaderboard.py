"""The leaderboard: who is ranked against whom, and the page as a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

import gkp
from gkp.artifact.leaderboard import grouped, leaderboard
from gkp.evaluation.robustbench.entry import load_entries, save_entry
from gkp.evaluation.robustbench.schema import check_entry


def made(name: str, accuracy: float, **fields: object) -> dict:
    entry = {
        "name": name, "dataset": "cifar10", "threat_model": "Linf", "eps": "8/255", "clean_acc": "90.00", "n": 1000, "seed": 0,
        "external": f"{accuracy:.2f}", "architecture": "ResNet-20", "venue": "NeurIPS 2023", "macs": 40_000_000,
        "parameters": 270_000, "latency": {"seconds": 0.002, "threads": 1, "batch_size": 1},
        "interval": {"best_known": [accuracy - 2, accuracy + 2]},
    }  # fmt: skip
    return check_entry({**entry, **fields}, name)


ENTRIES = [
    made("middle", 40.0, macs=10_000_000),
    made("best", 50.0, macs=125_000_000, clean_acc="80.00", venue=""),
    made("without costs", 30.0, macs=None, parameters=None, latency=None, interval=None, seed=None),
    made("close to the middle", 39.0, macs=9_000_000, clean_acc="100.00", architecture="ResNet-56"),
    made("small eps", 70.0, eps="1/255"),
    made("L2", 60.0, eps="0.5", threat_model="L2"),
]
TABLE = "cifar10-Linf-8-255"


class Page(HTMLParser):
    """Row headers per table, in order; headers of columns with aria-sort; tags; texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: dict[str, list[str]] = {}
        self.sorts: dict[str, dict[str, str]] = {}
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._table = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag == "table":
            self._table = given["id"]
            self.rows[self._table], self.sorts[self._table] = [], {}
        elif tag == "th" and given["scope"] == "row":
            self.rows[self._table].append(given["data-sort"])
        elif tag == "th":
            self.sorts[self._table][given["data-key"]] = given["aria-sort"]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return leaderboard(ENTRIES, tmp_path_factory.mktemp("page") / "index.html")


# --- ranking --------------------------------------------------------------------------------------------------------


def test_different_eps_threat_models_and_data_sets_are_never_ranked_against_each_other():
    groups = grouped([*ENTRIES, made("digits", 10.0, dataset="digits")])
    assert [group.title for group in groups] == [
        "cifar10, Linf, eps = 1/255",
        "cifar10, Linf, eps = 8/255",
        "cifar10, L2, eps = 0.5",
        "digits, Linf, eps = 8/255",
    ]
    assert [row.rank for group in groups for row in group.rows] == [1, 1, 2, 3, 4, 1, 1]


def test_one_radius_written_in_two_ways_is_one_group():
    (group,) = grouped([made("a", 10.0, eps="8/255"), made("b", 20.0, eps=8 / 255)])
    assert [row.entry["name"] for row in group.rows] == ["b", "a"]


def test_equal_accuracies_share_a_rank_and_intervals_leave_ranks_open():
    wide, narrow = {"best_known": [30, 50]}, {"best_known": [39, 41]}
    (group,) = grouped([made("a", 40.0, interval=wide), made("b", 40.0, interval=narrow), made("c", 45.0), made("d", 20.0)])
    assert [(row.entry["name"], row.rank, row.best, row.worst) for row in group.rows] == [
        ("c", 1, 1, 2),  # 43 to 47 lies above b, within a
        ("a", 2, 1, 3),
        ("b", 2, 2, 3),
        ("d", 4, 4, 4),
    ]


def test_the_best_known_figure_ranks_and_not_autoattack():
    (group,) = grouped([made("overestimated", 20.0, autoattack_acc="60.00"), made("honest", 30.0, autoattack_acc="30.00")])
    assert [row.entry["name"] for row in group.rows] == ["honest", "overestimated"]


# --- the file -------------------------------------------------------------------------------------------------------


def test_the_same_entries_give_the_same_bytes(page: Path, tmp_path: Path):
    again = leaderboard(ENTRIES, tmp_path / "folder" / "index.html")
    assert again.read_bytes() == page.read_bytes()


def test_the_page_names_no_address_to_load_from_and_forbids_it(page: Path):
    parsed = Page(page.read_text())
    loading = {"src", "srcset", "data", "poster", "background", "action"}
    assert not [tag for tag in parsed.tags if loading & set(tag[1]) or tag[0] in ("link", "iframe", "object", "img", "base")]
    references = [value for _, given in parsed.tags for key, value in given.items() if key in ("href", "xlink:href")]
    assert references and all(reference.startswith("#") for reference in references)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", page.read_text())
    (policy,) = [given["content"] for tag, given in parsed.tags if tag == "meta" and "http-equiv" in given]
    assert policy.startswith("default-src 'none'")


def test_every_text_of_an_entry_is_escaped(tmp_path: Path):
    bad = '<script>alert("1")</script>&amp;$x_1$'
    texts = dict.fromkeys(("name", "authors", "venue", "architecture", "dataset", "footnote"), bad)
    entry = {**made("x", 40.0), **texts, "link": 'https://example.org/"onclick="alert(1)'}
    path = leaderboard([entry], tmp_path / "x.html", title=bad)
    parsed = Page(path.read_text())
    assert [tag for tag, _ in parsed.tags].count("script") == 1  # ours
    assert not [given for _, given in parsed.tags if "onclick" in given]
    assert parsed.text.count(bad) >= 8


def test_the_plot_is_sound_xml_with_a_title_and_ids_of_its_own(page: Path):
    text = page.read_text()
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(plots) == 3
    for plot in plots:
        root = ElementTree.fromstring(plot)
        title = next(root.iter("{http://www.w3.org/2000/svg}title"))
        assert root.get("role") == "img" and root.get("aria-labelledby") == title.get("id")
        assert title.text.startswith("Robust accuracy against MACs: cifar10")
        assert "#000000" not in plot  # ink is the page's
    ids = [given["id"] for _, given in Page(text).tags if "id" in given]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert used <= set(ids)
    assert "1 without MACs left out" in text


def test_without_javascript_the_tables_stand_there_by_rank_and_no_button_is_dead(page: Path):
    parsed = Page(page.read_text())
    assert parsed.rows[TABLE] == ["best", "middle", "close to the middle", "without costs"]
    assert parsed.sorts[TABLE]["rank"] == "ascending" and "button" not in [tag for tag, _ in parsed.tags]


def test_entries_without_macs_have_a_table_and_no_plot(tmp_path: Path):
    text = leaderboard([ENTRIES[2]], tmp_path / "x.html").read_text()
    assert "<svg" not in text and "nothing to plot" in text and Page(text).rows == {"cifar10-Linf-8-255": ["without costs"]}


def test_the_page_has_robustbenchs_columns_and_those_of_efficiency(page: Path):
    headers = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', page.read_text())[:15]
    assert headers == [
        "Rank", "Method", "Standard acc.", "AA robust acc.", "Best known", "95 % interval", "Parameters", "MACs",
        "Latency", "n", "AA unreliable", "Extra data", "Architecture", "Venue", "Seed",
    ]  # fmt: skip
    assert "not run" in page.read_text()  # AutoAttack, of an entry without it


def test_saved_entries_become_a_page(tmp_path: Path):
    for entry in ENTRIES:
        save_entry(entry, tmp_path / "entries")
    path = leaderboard(load_entries(tmp_path / "entries"), tmp_path / "page.html")
    assert sorted(Page(path.read_text()).rows) == ["cifar10-L2-0.5", "cifar10-Linf-1-255", "cifar10-Linf-8-255"]


def test_bad_input_is_refused_and_an_old_page_stays(tmp_path: Path):
    old = tmp_path / "page.html"
    old.write_text("old")
    with pytest.raises(gkp.BadInput, match="no entries"):
        leaderboard([], old)
    with pytest.raises(gkp.BadInput, match=r"entry 2 \('B'\) has neither"):
        leaderboard([ENTRIES[0], {**ENTRIES[0], "name": "B", "external": None}], old)
    assert old.read_text() == "old"
    with pytest.raises(gkp.BadInput, match="give a file"):
        leaderboard(ENTRIES[:1], old / "page.html")


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs chromium on the PATH: apt-get install chromium")
    return found


def shown(browser: str, address: str, profile: Path, *options: str) -> str:
    """The page as it stands once its script has run."""
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    command = [browser, *quiet, f"--user-data-dir={profile}", *options, "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize(
    "column, direction, order",
    [
        ("macs", "ascending", ["close to the middle", "middle", "best", "without costs"]),
        ("macs", "descending", ["best", "middle", "close to the middle", "without costs"]),  # what is missing stays last
        ("standard", "descending", ["close to the middle", "middle", "without costs", "best"]),  # 100 before 90, not after
        ("method", "ascending", ["best", "close to the middle", "middle", "without costs"]),
    ],
)
def test_the_address_sorts_a_table(browser: str, page: Path, tmp_path: Path, column: str, direction: str, order: list[str]):
    parsed = Page(shown(browser, f"{page.as_uri()}#{TABLE},{column},{direction}", tmp_path))
    assert parsed.rows[TABLE] == order
    assert parsed.sorts[TABLE][column] == direction
    assert {sort for key, sort in parsed.sorts[TABLE].items() if key != column} == {"none"}
    assert parsed.sorts["cifar10-Linf-1-255"]["rank"] == "ascending"  # the other tables are left alone


def test_headers_are_buttons_that_sort_and_turn_round(browser: str, page: Path, tmp_path: Path):
    copy = tmp_path / "page.html"
    clicks = f"""<script>
      const button = document.querySelector("#{TABLE} th[data-key=parameters] button");
      button.focus();
      document.title = document.activeElement === button && button.type === "button" ? "reached by keyboard" : "not reached";
      document.querySelector("#{TABLE} th[data-key=macs] button").click();
      document.querySelector("#{TABLE} th[data-key=macs] button").click();
    </script></body>"""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())  # it forbids a test's script, too
    copy.write_text(text.replace("</body>", clicks))
    parsed = Page(shown(browser, copy.as_uri(), tmp_path / "profile"))
    assert "reached by keyboard" in parsed.text
    assert parsed.rows[TABLE] == ["best", "middle", "close to the middle", "without costs"]
    assert parsed.sorts[TABLE]["macs"] == "descending"


def requests(browser: str, address: str, folder: Path) -> list[str]:
    """What the page itself asked for; the browser's own requests have no origin."""
    shown(browser, address, folder / "profile", f"--log-net-log={folder / 'net.json'}")
    log = json.loads((folder / "net.json").read_text())
    found = [event.get("params", {}) for event in log["events"]]
    return [event["url"] for event in found if event.get("initiator", "not an origin") != "not an origin"]


def test_no_request_leaves_the_page(browser: str, page: Path, tmp_path: Path):
    leaky = tmp_path / "leaky" / "page.html"
    leaky.parent.mkdir()
    leaky.write_text('<img src="http://example.invalid/x.png">')
    assert "http://example.invalid/x.png" in requests(browser, leaky.as_uri(), leaky.parent)  # it would be seen
    assert requests(browser, page.as_uri(), tmp_path) == []
