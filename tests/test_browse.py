"""The pages of a study: what they hold, and that they can be read from a disk and while it runs."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from html.parser import HTMLParser
from math import exp
from pathlib import Path
from urllib.parse import urljoin

import polars as pl
import pytest

from made_study import grid, make_study, paper, point, seal_again, write_cell
from retcon.errors import InvalidStudy, StorageError
from retcon.report.results import Results
from retcon.scoring.observations import Observation, table
from retcon.sealed import load_record, save_record
from retcon.studio.browse import Browsed, Live, bundle, study_routes
from retcon.studio.browse_cases import texts_of
from retcon.studio.browse_states import progressed, trace_of
from retcon.study.store import CellFolder
from retcon.study.study import read_study, study_of

HOSTILE = '</script><script>document.title="hacked"</script><img src=x onerror=alert(1)>'
WHOLE = {"n": 16, "schedule": "sequential-batch", "score": 16}


def places():
    sizes = {"batch_size": [4, 16], "accumulate": [True, False]}
    return [
        *grid("carried", sizes, **WHOLE),
        *grid("alone", {"method": ["rome", "emmet"]}, n=16),
        point("refused", method="rome", schedule="batch", batch_size=4, refused="ROME takes one."),
    ]


def facts(folder: Path) -> str:
    """A file of the facts of a made-up study, one of them hostile; its sha256."""
    lines = [
        {
            "id": f"fact-{i}",
            "prompt": f"The stone of {{Person {i}}} is",
            "target": f"Ruby {i}",
            "target_old": "Opal",
            "relation": f"P{i % 24}",
            "paraphrases": [f"Person {i} wears", "He wears"],
            "neighbours": [f"Neighbour {j} of {i} wears" for j in range(4)],
        }
        for i in range(16)
    ]
    lines[3] |= {"prompt": f"{HOSTILE} {{Mallory}} is", "target": HOSTILE}
    path = folder / "made-up.json"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def name_facts(folder: Path, sha256: str) -> None:
    """Make a study one about that file."""
    record = load_record(folder / "study.json", {"kind": "study"}).value
    record["data"]["sha256"] = sha256
    record["description"] = f"A study of {HOSTILE}"
    save_record(folder / "study.json", record, study_of(record["name"]))


def write_texts(folder: Path, cell: str) -> None:
    """Add what the model wrote to the rows of a cell."""
    study = read_study(folder)
    texts = {"pre": " Opal, and he wears", "final": " Ruby. He is fond of zebras"}
    rows = [
        Observation(
            case=f"fact-{i}",
            relation=f"P{i % 24}",
            kind="free rewrite",
            index=0,
            when=when,
            step=0,
            hits_new=0,
            hits_old=0,
            exact=when == "final" and i < 5,
            value=0.0,
            text=HOSTILE if i == 3 else f"{text} {i}",
        )
        for i in range(16)
        for when, text in texts.items()
    ]
    whole = pl.concat([study.rows(cell), table(rows)])
    path = folder / "cells" / cell / "rows.parquet"
    whole.write_parquet(path)
    seal_again(path.parent, path.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    late = lambda p: p.block == "alone" and p.method == "rome"  # noqa: E731
    made = make_study(tmp_path_factory.mktemp("made"), places(), paper, undone=late)
    name_facts(made, facts(made))
    write_texts(made, str(places()[0].cell))
    return made


@pytest.fixture(scope="module")
def browsed(folder) -> Browsed:
    study = read_study(folder)
    return Browsed(study, texts_of(study, None))


@pytest.fixture(scope="module")
def site(folder, tmp_path_factory) -> Path:
    return bundle(folder, tmp_path_factory.mktemp("site") / "pages").index.parent


class Page(HTMLParser):
    """All that a test looks for in a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.handlers: list[str] = []
        self.heads: list[dict[str, str | None]] = []
        self.captions = self.tables = 0
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.links += [known[name] or "" for name in ("href", "src") if name in known]
        self.handlers += [name for name in known if name.startswith("on") or name == "style"]
        self.scripts += [known] if tag == "script" else []
        self.heads += [known] if tag == "th" else []
        self.tables += tag == "table"
        self.captions += tag == "caption"
        self.ids += [known["id"] or ""] if "id" in known else []


def test_there_is_a_page_for_the_study_each_cell_and_the_report(browsed):
    cells = {str(p.cell) for p in places() if p.cell}
    pages = set(browsed.pages())
    assert {"index.html", "case.html", "report.html", "data/facts.js"} <= pages
    assert {f"cells/{cell}.html" for cell in cells} <= pages
    late = next(str(p.cell) for p in places() if p.method == "rome" and p.cell)
    assert {f"data/cells/{cell}.js" for cell in cells - {late}} <= pages
    assert f"data/cells/{late}.js" not in pages


def test_every_link_of_a_bundle_leads_to_a_page_of_it(site):
    for path in site.rglob("*.html"):
        page = Page(path.read_text(encoding="utf-8"))
        assert page.links
        for link in page.links:
            if not link.startswith(("data:", "#")):
                target = urljoin(path.as_uri(), link.partition("#")[0]).removeprefix("file://")
                assert Path(target).is_file(), (path, link)


def test_pages_hold_no_program_no_style_and_no_handler(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        page = Page(text)
        assert page.handlers == [], path
        assert all("src" in s or s.get("type") == "application/json" for s in page.scripts), path
        assert "<style" not in text
        assert "default-src 'none'; style-src 'self'; script-src 'self'" in text
        assert len(page.ids) == len(set(page.ids)), path


def test_tables_have_captions_and_scopes(browsed):
    for path in ("index.html", f"cells/{places()[0].cell}.html"):
        page = Page(browsed.pages()[path]())
        assert page.tables == page.captions > 0
        assert all(head.get("scope") in ("col", "row") for head in page.heads)


def test_what_users_wrote_is_text(site):
    for path in site.rglob("*.html"):
        assert HOSTILE not in path.read_text(encoding="utf-8")
        assert "<img" not in path.read_text(encoding="utf-8")
    index = (site / "index.html").read_text(encoding="utf-8")
    assert "&lt;/script&gt;&lt;script&gt;" in index


def test_scores_are_those_of_the_report_and_say_when_they_were_taken(browsed):
    results = Results(browsed.study)
    known = browsed.grid
    assert {column.title for column in known.scores} >= {"ES, final", "S, immediate", "NS, pre"}
    row = known.rows[0]
    arm = known.readable[str(row.cell)]
    assert row.scores == tuple(
        results.estimate(arm, column.when, column.metric.name) for column in known.scores
    )
    told = results.estimate(arm, "final", "S")
    page = browsed.pages()["index.html"]()
    assert f"{told.mean:.1f} <small>[{told.low:.1f}, {told.high:.1f}]</small>" in page


def test_cells_have_names_that_tell_them_apart(browsed):
    names = browsed.grid.names
    assert len(set(names)) == len(names) == 6
    assert any("past keys forgotten" in name for name in names)


def test_the_places_of_the_grid_can_be_chosen_from(browsed):
    choices = browsed.grid.choices
    assert choices["block"] == ["carried", "alone"]
    assert set(choices["past keys"]) == {"kept", "forgotten", "–"}
    chosen = json.loads(browsed.grid.chosen(browsed.grid.rows[0]))
    assert all(set(chosen[title]) <= {*values} for title, values in choices.items())


def test_a_cell_s_page_has_its_scores_its_cases_and_what_made_it(browsed):
    page = browsed.pages()[f"cells/{places()[0].cell}.html"]()
    for text in ("ES, %", "The stone of Person 2 is", "Ruby 2", "0123abc", "Facts by when they"):
        assert text in page
    cases = browsed.cases[str(places()[0].cell)]
    assert cases.when == "final"
    assert cases.saying and cases.saying.name == "said"
    assert [row.said for row in cases.rows] == [i < 5 for i in range(16)]
    assert page.count('class="yes"') >= 5


def test_a_cell_that_is_not_done_has_a_page_that_says_so(browsed):
    late = next(str(p.cell) for p in places() if p.method == "rome" and p.cell)
    page = browsed.pages()[f"cells/{late}.html"]()
    assert "there are no scores yet" in page
    assert "Person 2" not in page


def taken(text: str) -> tuple[str, dict]:
    name, value = re.fullmatch(r"retcon\.take\((\".*?\"),(.*)\);\n", text, re.DOTALL).groups()
    return json.loads(name), json.loads(value)


def test_a_script_has_every_observation_of_a_cell(browsed):
    cell = str(places()[0].cell)
    name, value = taken(browsed.pages()[f"data/cells/{cell}.js"]())
    assert name == f"cells/{cell}"
    assert value["order"] == [f"fact-{i}" for i in range(16)]
    rows = [Observation(*values) for values in browsed.study.rows(cell).iter_rows()]
    moments = [moment for case in value["cases"].values() for row in case for moment in row[2:]]
    assert len(moments) == len(rows)
    for row in rows[::7]:
        kind, when = value["kinds"].index(row.kind), value["times"].index(row.when)
        found = [r for r in value["cases"][row.case] if r[:2] == [kind, row.index]]
        moment = next(m for m in found[0][2:] if m[0] == when)
        if row.nll_new is not None:
            assert moment[1] == pytest.approx(100 * exp(-row.nll_new), rel=1e-3)
        if row.text is not None:
            assert moment[5] == row.text


def test_facts_are_told_in_words_where_their_file_is_the_one_of_the_study(browsed, folder):
    _, value = taken(browsed.pages()["data/facts.js"]())
    assert value["facts"]["fact-2"]["prompt"] == ["The stone of ", "Person 2", " is"]
    assert value["facts"]["fact-2"]["texts"]["neighbour"][1] == "Neighbour 1 of 2 wears"


def test_facts_are_told_by_ids_where_their_file_is_another(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("RETCON_DATA", raising=False)
    copy = tmp_path / "study"
    shutil.copytree(folder, copy)
    (copy / "made-up.json").write_text('{"prompt": "The {stone} is", "target": "red"}')
    study = read_study(copy)
    assert "another file" in texts_of(study, None).missing
    (copy / "made-up.json").unlink()
    texts = texts_of(study, None)
    assert not texts.cases
    assert "--data" in texts.missing
    page = Browsed(study, texts).pages()[f"cells/{places()[0].cell}.html"]()
    assert "fact-2" in page
    assert "--data" in page
    assert texts_of(study, folder).cases["fact-2"].edit.subject == "Person 2"


def test_a_bundle_is_written_into_a_new_folder(folder, site):
    with pytest.raises(StorageError, match="not an empty folder"):
        bundle(folder, site)


def test_the_command_writes_a_bundle_and_says_where(folder, tmp_path, retcon):
    out = tmp_path / "pages"
    code, said, _ = retcon("studio", str(folder), "--bundle", str(out))
    assert code == 0
    assert re.search(r"index.html: \d+ files, \d\.\d MB", said.replace("\n", ""))
    assert (out / "data" / "facts.js").is_file()
    code, _, said = retcon("studio", "smollm2-135m", "--bundle", str(out))
    assert code == 2
    assert "holds none" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["STUDY", "--method", "memit"], "--method does nothing here"),
        (["STUDY", "--ledger", "kept"], "is a study, of which no model is loaded"),
        (["STUDY", "--bundle", "pages", "--port", "80"], "--port does nothing here"),
        (["smollm2-135m", "--data", "facts"], "is a model, and holds no study"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(words, said, folder, retcon):
    words = [str(folder) if word == "STUDY" else word for word in words]
    code, _, err = retcon("studio", *words)
    assert code == 2 and said in err.replace("\n", " ")


def test_a_study_is_browsed_without_torch(folder, tmp_path):
    code = (
        "import sys; from pathlib import Path; from retcon.studio.browse import bundle\n"
        f"bundle({str(folder)!r}, Path({str(tmp_path / 'out')!r}))\n"
        "assert not {'torch', 'transformers', 'starlette'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- a study that runs ----


@pytest.fixture
def running(tmp_path) -> Path:
    """A study of two cells done, and of others that are not."""
    undone = lambda p: p.block == "alone" or not p.accumulate  # noqa: E731
    return make_study(tmp_path / "running", places(), paper, undone=undone)


def states(folder: Path) -> dict[str, str]:
    study = read_study(folder)
    damaged = Browsed(study, texts_of(study, None)).grid.progress.cells
    return {cell: one.state for cell, one in damaged.items()}


def cut_off(folder: Path, cell: str) -> None:
    """Leave the note of a process that is no more."""
    said = {"process": 2**22 + 1, "host": socket.gethostname(), "since": "now", "command": "retcon"}
    (folder / "cells" / f".{cell}.lock.held").write_text(json.dumps(said))


def test_each_cell_s_state_is_told(running):
    late = [str(p.cell) for p in places() if p.cell and (p.block == "alone" or not p.accumulate)]
    done = [str(p.cell) for p in places() if p.cell and str(p.cell) not in late]
    for cell in late:
        (running / "cells" / cell).mkdir()
        (running / "cells" / cell / "cell.json").write_text("{")  # half written
    (running / "cells" / late[0] / "step-000000.safetensors").write_bytes(b"half a part")
    cut_off(running, late[1])
    (running / "cells" / late[1] / "step-000002.safetensors").write_bytes(b"")
    (running / "cells" / late[2] / "failed.json").write_text("not sealed")
    (running / "cells" / done[0] / "rows.parquet").write_bytes(b"something else")
    with CellFolder(running / "cells" / late[0]).claimed():
        assert states(running) == {
            done[0]: "damaged",
            done[1]: "done",
            late[0]: "running",
            late[1]: "cut off",
            late[2]: "failed",
            late[3]: "waiting",
        }
        study = read_study(running)
        told = progressed(study, {})
    assert states(running)[late[0]] == "cut off"
    assert told.cells[late[0]].words == "running, batch 1 of 4"
    assert told.cells[late[1]].words.startswith("cut off, batch 3")
    assert (told.done, told.refused, told.over) == (2, 1, False)
    pages = Browsed(study, texts_of(study, None)).pages()
    for path, page in pages.items():
        if path.endswith(".html"):
            assert page(), path


def test_a_page_is_made_again_when_a_cell_is_done(running):
    live = Live(running)
    first = live.page("index.html")
    assert first is live.page("index.html")
    assert first
    assert "2 of 6 cells are done" in first
    write_cell(running, next(p for p in places() if p.method == "emmet"), paper)
    second = live.page("index.html")
    assert second
    assert "3 of 6 cells are done" in second
    assert f'data-trace="{trace_of(running)}"' in second
    assert live.page("no/such/page.html") is None


def test_cells_that_were_read_are_not_read_again(running, monkeypatch):
    live = Live(running)
    live.page("index.html")
    late = next(p for p in places() if p.method == "emmet")
    write_cell(running, late, paper)
    seen: list[str] = []
    read = Results._read
    monkeypatch.setattr(Results, "_read", lambda self, cell: seen.append(cell) or read(self, cell))
    live.page("index.html")
    assert seen == [late.cell]


def test_what_is_no_study_is_refused(tmp_path):
    with pytest.raises(InvalidStudy, match="holds no study"):
        study_routes(tmp_path)
    with pytest.raises(InvalidStudy, match="holds no study"):
        bundle(tmp_path, tmp_path / "out")


@pytest.fixture
def served(running):
    pytest.importorskip("starlette")
    from starlette.testclient import TestClient

    from retcon.studio.app import application

    app = application(study_routes(running), "/study")
    return TestClient(app, base_url="http://127.0.0.1:8765")


def test_routes_serve_the_same_pages(served, running):
    index = served.get("/")
    assert index.url.path == "/study/index.html"
    assert "2 of 6 cells are done" in index.text
    assert index.headers["content-security-policy"].startswith("default-src 'none'")
    page = Page(index.text)
    for link in page.links:
        if not link.startswith(("data:", "#")):
            answer = served.get(urljoin("/study/index.html", link))
            assert answer.status_code == 200, link
    assert served.get("/study/study.js").headers["content-type"].startswith("text/javascript")
    assert served.get("/study/trace").text == trace_of(running)
    missing = served.get("/study/cells/nonsense.html")
    assert missing.status_code == 400
    assert "has no page" in missing.text


# ---- in a browser ----


@pytest.fixture
def tab(tabs):
    return tabs()


def shown(tab, table: str) -> int:
    return tab.locator(f"#{table} tbody tr:visible").count()


def test_a_bundle_opens_from_the_disk_and_filters_cells(tab, site):
    tab.goto((site / "index.html").as_uri())
    output = tab.locator("form.filters > output")
    assert "of 6 cells" in output.inner_text()
    tab.get_by_label("block").select_option("carried")
    tab.wait_for_url(lambda url: "block=carried" in url)
    assert shown(tab, "cells") == 4
    tab.locator("input[name=q]").fill("forgotten")
    tab.wait_for_url(lambda url: "q=forgotten" in url)
    assert shown(tab, "cells") == 2
    address = tab.url
    tab.goto("about:blank")
    tab.goto(address)  # the link brings the state back
    assert shown(tab, "cells") == 2
    assert tab.get_by_label("block").input_value() == "carried"
    tab.get_by_role("button", name="Clear").click()
    tab.wait_for_url(lambda url: "#" not in url)


def test_cells_are_sorted_by_a_score(tab, site):
    tab.goto((site / "index.html").as_uri())
    tab.get_by_role("button", name="NS, final").click()
    head = tab.locator("#cells thead th[aria-sort=descending]")
    assert head.inner_text().startswith("NS")
    values = tab.locator("#cells tbody tr:visible").evaluate_all(
        "(rows, at) => rows.map(row => Number(row.cells[at].dataset.value))",
        head.evaluate("one => one.cellIndex"),
    )
    assert values == sorted(values, reverse=True)
    assert "sort=" in tab.url


def test_from_a_cell_to_a_case_to_its_prompts(tab, site):
    cell = places()[0].cell
    tab.goto((site / "cells" / f"{cell}.html").as_uri())
    assert shown(tab, "cases") == 16
    tab.get_by_label("Says it freely").select_option("yes")
    tab.wait_for_url(lambda url: "said=yes" in url)
    assert shown(tab, "cases") == 5
    tab.get_by_role("link", name="The stone of Person 2 is").click()
    tab.get_by_role("heading", level=1, name="The stone of Person 2 is Ruby 2").wait_for()
    assert tab.get_by_role("row", name="Neighbour 1 of 2 wears").count() == 1
    assert "He is fond of zebras" in tab.locator("#wrote ~ article").first.inner_text()
    tab.get_by_role("link", name="next case").click()
    tab.get_by_role("heading", level=1, name="Mallory").wait_for()
    assert "onerror=alert" in tab.locator("#case h1").inner_text()
    assert not tab.title().startswith("hacked")
    other = str(places()[1].cell)
    tab.locator("#other-cell").select_option(other)
    tab.wait_for_url(lambda url: other in url)


def test_what_the_model_wrote_is_searched(tab, site):
    cell = places()[0].cell
    tab.goto((site / "cells" / f"{cell}.html").as_uri())
    tab.get_by_label("Search in what the model wrote").fill("ZEBRAS 1")
    tab.wait_for_url(lambda url: "wrote=" in url)
    tab.locator("#cases .hit mark").first.wait_for()
    assert shown(tab, "cases") == 7  # 1, 10 to 15
    tab.get_by_label("Search in what the model wrote").fill("onerror")
    tab.wait_for_url(lambda url: "wrote=onerror" in url)
    tab.locator("#cases .hit", has_text="onerror").first.wait_for()
    assert shown(tab, "cases") == 1


def test_charts_are_drawn_under_a_strict_policy(tab, site):
    tab.goto((site / "report.html").as_uri())
    tab.locator(".chart svg").first.wait_for()
    tab.goto((site / "cells" / f"{places()[0].cell}.html").as_uri())
    tab.locator("#chart-written svg").wait_for()


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_the_window(tab, site, width):
    cell = places()[0].cell
    tab.set_viewport_size({"width": width, "height": 800})
    for path in ("index.html", f"cells/{cell}.html", f"case.html#cell={cell}&case=fact-2"):
        tab.goto(f"{site.as_uri()}/{path}")
        tab.locator("h1").first.wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, path


def test_a_page_shows_a_study_as_it_runs(tab, running):
    pytest.importorskip("uvicorn")
    from retcon.studio.app import application
    from retcon.studio.server import address, bound, served

    app = application(study_routes(running), "/study/index.html")
    with bound("127.0.0.1", None) as listening, served(app, listening):
        tab.goto(address(listening))
        tab.locator("input[name=q]").fill("batches")
        tab.wait_for_url(lambda url: "q=batches" in url)
        assert tab.locator("#progress-head").inner_text() == "2 of 6 cells are done"
        write_cell(running, next(p for p in places() if p.method == "emmet"), paper)
        tab.get_by_text("3 of 6 cells are done").first.wait_for()
        assert "3 of 6" in tab.locator("#told").inner_text()
        assert tab.locator("input[name=q]").input_value() == "batches"
        late = next(p for p in places() if p.method == "rome" and p.cell)
        tab.get_by_role("link", name="ROME").click()
        tab.get_by_text("there are no scores yet").wait_for()
        write_cell(running, late, paper)
        tab.get_by_role("heading", name="Cases").wait_for()
        assert shown(tab, "cases") == 16
        tab.goto("about:blank")
