"""The pages of docs/ as a site: they link to one another, and what they tell to type works."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import retcon as package
from fake_hub import install
from pico import pico, tokenizer
from retcon.patch.ledger import Ledger
from test_cli import FACTS, SETTINGS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# The settings of the site, and the pages that it writes from the code.
SITE = runpy.run_path(str(DOCS / "conf.py"))
WRITTEN = {f"reference/{name}": page for name, page in SITE["write_pages"].WRITTEN.items()}
SHIPPING = (DOCS / "shipping.md").read_text(encoding="utf-8")


def pages() -> list[Path]:
    """Every page that is in the repository."""
    own = (path for path in DOCS.rglob("*.md") if path.parent != DOCS / "reference")
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(own)]


def anchors(page: Path) -> set[str]:
    """What a link to a heading of a page may end in."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ +(.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_to_files_and_headings():
    for page in pages():
        for link in re.findall(r"\]\(([^):]+)\)", page.read_text(encoding="utf-8")):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if f"{target.parent.name}/{target.stem}" in WRITTEN:
                continue
            assert target.exists(), f"{page.name} links to {link}"
            assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def test_the_site_leads_to_every_page():
    named = [page for _, chosen in SITE["navigation"]() for _, page in chosen]
    own = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}
    assert len(named) == len(set(named))
    assert set(named) - set(WRITTEN) == own - set(WRITTEN) - {"index"}


def test_the_reference_is_written_from_the_code(retcon):
    text = {name: page() for name, page in WRITTEN.items()}
    for name in package.__all__:
        assert name.startswith("_") or f":: retcon.{name}" in text["reference/api"]
    for command in ("edit", "patch undo", "study run"):
        (section,) = re.findall(
            rf"\n#+ retcon {command}\n(.*?)\n#", text["reference/cli"], re.DOTALL
        )
        _, out, _ = retcon(*command.split(), "--help")
        for option in set(re.findall(r"--[a-z]\S+", out)) - {"--help"}:
            assert f"{option}" in section, f"{command} {option}"
    schema = json.loads((DOCS / "study.schema.json").read_text(encoding="utf-8"))
    for part in (schema, *schema["$defs"].values()):
        assert all(f"| `{key}`" in text["reference/schema"] for key in part["properties"])


def test_the_map_lists_every_file():
    """Mend it with: python docs/write_pages.py."""
    assert (DOCS / "map.md").read_text(encoding="utf-8") == SITE["write_pages"].map_page()


@pytest.mark.long
def test_the_site_is_built_without_warnings_and_needs_no_network(tmp_path):
    for name in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(name, reason=f"needs {name} (pip install 'retcon-llm[docs]')")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "-d"]
    folders = [str(tmp_path / "trees"), str(DOCS), str(tmp_path / "site")]
    built = subprocess.run([*command, *folders], check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for path in (tmp_path / "site").rglob("*.html"):
        assets = re.findall(
            r"<(?:script|img|source|iframe)[^>]*\ssrc=\"([^\"]+)|<link[^>]*\shref=\"([^\"]+)",
            path.read_text(encoding="utf-8"),
        )
        assert not [a or b for a, b in assets if re.match(r"https?:|//", a or b)], path.name
    llms = (tmp_path / "site" / "llms.txt").read_text(encoding="utf-8")
    listed = re.findall(r"\]\(([^)]+)\)", llms)
    assert len(listed) > 30 and all((tmp_path / "site" / name).exists() for name in listed)


def commands(page: str) -> list[str]:
    """The lines of a page's `console` blocks."""
    blocks = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_way_from_facts_to_a_served_model(tmp_path, monkeypatch, retcon):
    pytest.importorskip("gguf", reason="needs gguf")
    monkeypatch.chdir(tmp_path)
    install(monkeypatch, tmp_path / "hub")
    pico().model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    more = {"prompt": "The city of {Warsaw} is of", "target": "Italy", "id": "warsaw"}
    facts = [
        {**fact, "id": id} for fact, id in zip(FACTS, ["darrieux", "curie", "france"], strict=True)
    ]
    lines = "\n".join(json.dumps(fact) for fact in [*facts, more])
    (tmp_path / "facts.jsonl").write_text(lines, encoding="utf-8")
    lines = commands(SHIPPING)
    assert len(lines) == 20 and all(line.startswith("retcon ") for line in lines)
    for line in lines:
        words = ["./model" if word == "MODEL" else word for word in shlex.split(line)[1:]]
        code, _, err = retcon(*words, *(SETTINGS if words[0] == "edit" else []))
        assert code == 0, f"{line}: {err}"
    ledger = Ledger(tmp_path / "ledger")
    assert [edit.id for edit in ledger.stack().edits] == ["warsaw"]
    assert ledger.history[0].action.scores["final"]["ES"] is not None
    assert (tmp_path / "adapter-2" / "adapter_model.safetensors").exists()


def test_the_fact_of_the_page_can_be_read():
    from retcon.data.cases import parse_fact

    (line,) = re.findall(r"```json\n(.*?)\n```", SHIPPING)
    assert parse_fact(line).edit.id == "darrieux"
