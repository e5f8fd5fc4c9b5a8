"""The studio in a browser: a fact is typed and undone, tabs stay apart, and all is kept."""

import re
import subprocess
import sys
import threading
import time
from urllib.parse import quote

import pytest

from retcon.patch.ledger import Ledger
from retcon.studio.app import application
from retcon.studio.editing import edit_routes
from retcon.studio.server import address, bound, served
from test_methods import FAST
from test_studio import CURIE, FRANCE, bench_in, open_studio

OPTIONS = [part for name, value in FAST.items() for part in ("--set", f"{name}={value}")]


@pytest.fixture
def studio(tmp_path):
    """A bench that is served, and its address."""
    bench = bench_in(tmp_path)
    with open_studio(bench) as client:
        yield bench, str(client.base_url)


def type_fact(tab, fact):
    tab.get_by_label("Text that the model goes on with").fill(fact["prompt"])
    tab.get_by_label("It should say").fill(fact["target"])


def write(tab, url, fact):
    tab.goto(f"{url}/edit")
    type_fact(tab, fact)
    tab.get_by_role("button", name="Write this fact").click()
    tab.wait_for_url("**/edits/*")


def test_a_fact_is_typed_seen_undone_and_exported(studio, tabs):
    bench, url = studio
    tab = tabs()
    tab.goto(f"{url}/")
    type_fact(tab, FRANCE)
    tab.wait_for_selector("#look .lookup")
    assert tab.locator("#look .lookup").inner_text().startswith("·France")
    assert quote("Rome") in tab.url  # a link for every state
    tab.reload()
    tab.wait_for_selector("#look .lookup")
    tab.get_by_role("button", name="Write this fact").click()
    tab.wait_for_url("**/edits/1")
    assert tab.locator(".card.before").count() == tab.locator(".card.after").count() == 1
    tab.get_by_role("button", name="Undo").click()
    tab.wait_for_selector("text=switched off")
    assert bench.ledger.entries() == ()
    tab.get_by_role("link", name="Stack").click()
    tab.get_by_role("switch", name=re.compile("France")).click()
    tab.wait_for_selector("text=1 fact in the model")
    tab.get_by_label("Note of entry 1").fill("as printed")
    tab.get_by_role("button", name="Save").click()
    tab.wait_for_load_state()
    assert bench.ledger.entries()[0].note == "as printed"


def test_the_subject_is_marked_and_mistakes_are_told(studio, tabs):
    tab = tabs(390)
    tab.goto(f"{studio[1]}/edit")
    type_fact(tab, {"prompt": "The capital city of France is", "target": "Rome"})
    tab.wait_for_selector("#problem:visible")
    assert "in braces" in tab.locator("#problem").inner_text()
    tab.evaluate("document.querySelector('#prompt').setSelectionRange(20, 26)")
    tab.get_by_role("button", name="put braces around").click()
    tab.wait_for_selector("#look .lookup")
    assert tab.locator("#prompt").input_value() == FRANCE["prompt"]
    assert not tab.locator("#problem").is_visible()
    width = tab.evaluate("document.documentElement.scrollWidth")
    assert width == 390


def test_two_tabs_write_and_one_cancels(studio, tabs, monkeypatch):
    bench, url = studio
    from retcon.run.edit import edit

    def slow(*args, progress, **others):
        for step in range(40):
            progress("optimising targets, in steps", step, 40)
            time.sleep(0.05)
        return edit(*args, progress=progress, **others)

    monkeypatch.setattr("retcon.studio.bench.edit", slow)
    first, second = tabs(), tabs()
    for tab, fact in ((first, FRANCE), (second, CURIE)):
        tab.goto(f"{url}/edit")
        type_fact(tab, fact)
        tab.get_by_role("button", name="Write this fact").click()
    # Each tab sees the work of both, and the page still answers.
    second.get_by_role("button", name="Cancel: Writing “Marie Curie").click()
    first.wait_for_url("**/edits/1")
    second.wait_for_selector("#jobs:empty", state="attached")
    second.get_by_role("button", name="Write this fact").click()
    second.wait_for_url("**/edits/2")
    first.goto(f"{url}/stack")
    assert first.locator("h1").inner_text() == "2 facts in the model"
    assert bench.model(lambda *_: None).as_loaded


def test_who_goes_on_is_told_where_she_is(studio, tabs, monkeypatch):
    bench, url = studio
    hold = threading.Event()
    own = bench.written

    def slow(case, note, progress):
        while not hold.wait(0.05):
            progress("waiting", 0, 1)
        return own(case, note, progress)

    monkeypatch.setattr(bench, "written", slow)
    tab = tabs()
    tab.goto(f"{url}/edit")
    type_fact(tab, FRANCE)
    button = tab.get_by_role("button", name="Write this fact")
    button.click()
    assert button.is_disabled()
    type_fact(tab, CURIE)  # and here she stays
    button.click()
    tab.wait_for_selector(".job >> nth=1")
    tab.get_by_role("link", name="Stack").click()
    tab.wait_for_selector(".job >> nth=1")
    tab.get_by_role("button", name="Cancel: Writing “Marie Curie").click()
    tab.wait_for_selector("#notice:has-text('Nothing was changed')")
    hold.set()
    tab.wait_for_selector("#notice:has-text('Done: Writing “The capital city of France')")
    tab.get_by_role("link", name="See it").click()
    tab.wait_for_url("**/edits/1")
    monkeypatch.setattr(bench, "written", lambda *_: {}["x"])
    tab.goto(f"{url}/edit")
    type_fact(tab, CURIE)
    button.click()
    tab.wait_for_selector("#problem:has-text('mistake of Retcon')")


def test_a_job_that_is_done_before_the_page_knows_of_it_is_shown(studio, tabs):
    tab = tabs()

    def late(route):
        answer = route.fetch()
        tab.wait_for_timeout(2000)
        route.fulfill(response=answer)

    tab.route("**/looks", late)
    tab.goto(f"{studio[1]}/edit")
    type_fact(tab, FRANCE)
    tab.wait_for_selector("#look .lookup")


def test_a_page_says_when_nobody_answers_and_goes_on_when_somebody_does(tmp_path, browser):
    bench = bench_in(tmp_path)
    app = application(edit_routes(bench), "/edit")
    page = browser.new_page()  # a tab whose console may speak of what is gone
    try:
        with bound("127.0.0.1", None) as listening, served(app, listening):
            port = listening.getsockname()[1]
            page.goto(f"{address(listening)}/edit")
        page.wait_for_selector("#problem:has-text('does not answer')")
        with bound("127.0.0.1", port) as listening, served(app, listening):
            page.wait_for_selector("#problem", state="hidden", timeout=60_000)
            page.goto("about:blank")
    finally:
        page.close()
        bench.jobs.end()


def test_everything_can_be_done_with_the_keyboard(studio, tabs):
    tab = tabs()
    write(tab, studio[1], FRANCE)
    write(tab, studio[1], CURIE)
    tab.goto(f"{studio[1]}/stack")
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.getAttribute('role')") == "switch":
            break
    tab.keyboard.press("Enter")
    tab.wait_for_selector("text=1 fact in the model")
    # The switch stays where it was, and in focus.
    switches = tab.get_by_role("switch")
    assert [one.get_attribute("aria-checked") for one in switches.all()] == ["false", "true"]
    assert tab.evaluate("document.activeElement.getAttribute('aria-checked')") == "false"
    tab.keyboard.press("Enter")
    tab.wait_for_selector("text=2 facts in the model")
    unnamed = tab.evaluate(
        "[...document.querySelectorAll('input:not([type=hidden]), select, textarea, button')]"
        ".filter(e => !e.labels?.length && !e.textContent.trim() && !e.ariaLabel).length"
    )
    assert unnamed == 0


def started(folder):
    """The command in a process of its own, and the address that it prints."""
    words = ["studio", "./model", "--ledger", "kept", "--method", "emmet", "--layer", "1", *OPTIONS]
    code = (
        "import sys; from retcon.cli.main import run; sys.argv = ['retcon', *sys.argv[1:]]; run()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    found = re.search(r"http://[\d.]+:\d+", line)
    assert found, process.stderr.read()
    return process, found[0]


@pytest.mark.long
def test_a_process_that_is_killed_has_lost_nothing(folder, tabs):
    tab = tabs()
    process, url = started(folder)
    try:
        write(tab, url, FRANCE)
        tab.goto(f"{url}/stack")
        tab.get_by_label("Form").select_option("peft")
        tab.get_by_role("button", name="Export").click()
        tab.wait_for_selector("#exports")
        before = tab.goto(f"{url}/edits/1").text()
        tab.goto("about:blank")  # else it says that nobody answers any more
    finally:
        process.kill()
        process.communicate()
    assert (folder / "kept" / "exports" / "stack-1" / "adapter_config.json").exists()
    process, url = started(folder)
    try:
        assert tab.goto(f"{url}/edits/1").text() == before
        tab.goto(f"{url}/stack")
        assert tab.locator("h1").inner_text() == "1 fact in the model"
        write(tab, url, CURIE)
        tab.goto("about:blank")
        process.terminate()
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143 and "The facts are kept in kept" in said
    assert len(Ledger(folder / "kept").entries()) == 2
