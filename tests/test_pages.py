"""The pages of docs/ as a site: they link to one another, and what they tell to type works."""

import functools
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import retcon as package
from fake_hub import install
from retcon.patch.ledger import Ledger
from test_cli import FACTS, FAST, SETTINGS
from test_verbs import STUDY
from tiny_study import write_model_and_facts

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# The settings of the site, and the pages that it writes from the code.
SITE = runpy.run_path(str(DOCS / "conf.py"))
WRITTEN = {f"reference/{name}": page for name, page in SITE["write_pages"].WRITTEN.items()}


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


# What the pages tell to type.

BLOCK = re.compile(r"(<!-- needs: .+? -->\n\n)?```(\w*)\n(.*?)```", re.DOTALL)
# Whose blocks are run here, in this order, in one folder.
FOLLOWED = ("getting-started", "compare-methods", "published-study")
# Blocks of docs/extend are files of tests/plugins; those of results were run when it was written.
ELSEWHERE = ("extend", "results", "design", "reference")
# Small numbers for a pico model, and the names of what stands in for the real one.
SMALL = f"{{ridge: 0, {', '.join(FAST).replace('=', ': ')}}}"
STAND_INS = {
    "{ridge: 0}": SMALL,
    "{ridge: tuned}": SMALL.replace("ridge: 0", "ridge: tuned"),
    "method: finetune}": "method: finetune, settings: {steps: 2}}",
    "ridges: [30, 300, 3000], n: 16": "ridges: [1, 10], n: 3",
    "n: 32": "n: 3",
    "smollm2-135m": "./model",
    "--n 8": "--n 3",
    "starter": "facts.jsonl",
    "results/smollm2": "methods",
}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of a page's blocks, without those that say what they need."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(language, text) for needs, language, text in found if not needs]


def commands(page: Path) -> list[str]:
    """The lines of a page's `console` blocks."""
    return [
        line
        for language, text in blocks(page)
        if language == "console"
        for line in text.splitlines()
    ]


def test_every_block_is_run_or_says_what_it_needs():
    """Lines behind a $ are shown with what they have printed."""
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).with_suffix("").as_posix()
        if name.split("/")[0] in ELSEWHERE or name in FOLLOWED:
            continue
        languages = {language for language, text in blocks(page) if not text.startswith("$ ")}
        unrun = languages & {"python", "console"}
        assert unrun <= {"index": {"python"}, "shipping": {"console"}}.get(name, set()), name


def test_every_command_of_every_page_can_be_parsed():
    from typer.main import get_command

    from retcon.cli.main import app

    known = dict(SITE["write_pages"].commands(get_command(app)))
    for page in (*pages(), *(ROOT / "examples").rglob("*.md")):
        text = "\n".join(text for _, _, text in BLOCK.findall(page.read_text(encoding="utf-8")))
        for line in re.findall(r"^(?:\$ )?retcon (?!-)(.*)", text, re.MULTILINE):
            words = shlex.split(re.split(r" {2,}|  #| #", line)[0])
            length = 1 + (len(words) > 1 and f"retcon {words[0]} {words[1]}" in known)
            command = known[" ".join(["retcon", *words[:length]])]
            options = {name for parameter in command.params for name in parameter.opts}
            given = {word for word in words[length:] if re.match(r"--?[a-z]", word)}
            assert given <= options, f"{page.name}: retcon {line}"


def write_facts(folder: Path, facts: list[dict]) -> None:
    lines = "\n".join(json.dumps(fact) for fact in facts)
    (folder / "facts.jsonl").write_text(lines, encoding="utf-8")


def small(language: str, text: str) -> str:
    """A block with what stands in for the real model, its facts and its settings."""
    python = ("smollm2-135m", "results/smollm2")
    chosen = STAND_INS if language != "python" else {real: STAND_INS[real] for real in python}
    for real, stand_in in chosen.items():
        text = text.replace(real, stand_in)
    return text


@pytest.mark.long
def test_what_the_tutorials_tell_to_type_works(folder, monkeypatch, retcon):
    """In their order, in one folder, with a model so small that its scores mean nothing."""
    pytest.importorskip("jinja2", reason="needs the extra `report`")
    write_model_and_facts(folder, paraphrased=True)
    settings = {name: float(value) for name, _, value in (each.partition("=") for each in FAST)}
    edit = functools.partial(package.edit, method="emmet", layers=[1], settings=settings)
    monkeypatch.setattr(package, "edit", edit, raising=False)
    cases = functools.partial(package.load_cases, "facts.jsonl")
    monkeypatch.setattr(package, "starter_cases", cases, raising=False)
    ran = 0
    for name in ("index", *FOLLOWED):
        for language, real in blocks(DOCS / f"{name}.md"):
            text = small(language, real)
            ran += language in ("console", "python")
            if language == "yaml":
                Path("methods.yaml").write_text(text, encoding="utf-8")
            elif language == "python":
                exec(compile(text, name, "exec"), {})
            elif language == "console":
                for line in text.splitlines():
                    words = shlex.split(line)[1:]
                    more = ["--method", "emmet", "--layer", "1", *SETTINGS]
                    code, _, err = retcon(*words, *(more if words[0] == "edit" else []))
                    assert code == 0, f"{line}: {err}"
    assert ran == 11 and Path("methods/report.html").exists()


def test_the_way_from_facts_to_a_served_model(folder, monkeypatch, retcon):
    pytest.importorskip("gguf", reason="needs gguf")
    install(monkeypatch, folder / "hub")
    more = {"prompt": "The city of {Warsaw} is of", "target": "Italy", "id": "warsaw"}
    facts = [
        {**fact, "id": id} for fact, id in zip(FACTS, ["darrieux", "curie", "france"], strict=True)
    ]
    write_facts(folder, [*facts, more])
    lines = commands(DOCS / "shipping.md")
    assert len(lines) == 21 and all(line.startswith("retcon ") for line in lines)
    for line in lines:
        words = ["./model" if word == "MODEL" else word for word in shlex.split(line)[1:]]
        code, _, err = retcon(*words, *(SETTINGS if words[0] == "edit" else []))
        assert code == 0, f"{line}: {err}"
    ledger = Ledger(folder / "ledger")
    assert [edit.id for edit in ledger.stack().edits] == ["curie", "warsaw"]
    assert ledger.history[0].action.scores["final"]["ES"] is not None
    assert (folder / "adapter-2" / "adapter_model.safetensors").exists()


# PEFT asks transformers for a name that transformers is about to drop.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_facts_in_use_come_to_plain_transformers(folder, retcon):
    """The page's own lines, on facts of the package, two of which have one key."""
    pytest.importorskip("peft", reason="needs peft")
    page = DOCS / "shipping.md"
    records = (ROOT / "src/retcon/data/everyday.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "facts.jsonl").write_text("\n".join(records[:4]), encoding="utf-8")
    for begins in ("edit MODEL", "patch add", "patch export ledger --to peft -o adapter "):
        (line,) = [line for line in commands(page) if line.startswith(f"retcon {begins}")]
        words = ["./model" if word == "MODEL" else word for word in shlex.split(line)[1:]]
        more = [*SETTINGS, "--set", "clamp=20", "--set", "ridge=0.01"]
        code, _, err = retcon(*words, *(more if words[0] == "edit" else []))
        assert code == 0, f"{line}: {err}"
    python = [text for _, language, text in BLOCK.findall(page.read_text(encoding="utf-8"))
              if language == "python" and "AutoPeftModelForCausalLM" in text]  # fmt: skip
    names: dict[str, object] = {}
    exec(compile(python[0], "shipping", "exec"), names)
    handle = package.load("./model")
    prompt = torch.tensor([handle.tokens.encode("The Lumora Kettle costs")])

    def logits(model) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=prompt, use_cache=False).logits

    with package.load_patch("facts.safetensors").applied(handle):
        assert torch.allclose(logits(names["model"]), logits(handle.model), atol=1e-4)
    assert not torch.allclose(logits(names["model"]), logits(handle.model), atol=1e-2)


def test_the_fact_of_the_page_can_be_read():
    from retcon.data.cases import parse_fact

    (line,) = [text for language, text in blocks(DOCS / "shipping.md") if language == "json"]
    assert parse_fact(line).edit.id == "darrieux"


NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# What stands in for the models and the settings of a notebook.
PARAMETERS = {
    "edit_and_undo": f"MODEL, SETTINGS = 'model', dict({', '.join(FAST)})",
    "compare_methods": "import retcon\nMODEL, LAYER = 'model', 1\n"
    "CASES = retcon.load_cases('facts.jsonl')\n"
    f"METHODS = {{'memit': dict({', '.join(FAST)}, ridge=1.0), 'finetune': {{'steps': 2}}}}",
    "read_a_study": "STUDY = 'study'",
}


def test_notebooks_are_kept_without_what_they_print():
    assert {path.stem for path in NOTEBOOKS} == PARAMETERS.keys()
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs") and cell.get("execution_count") is None, path.name


@pytest.mark.long
@pytest.mark.parametrize("name", PARAMETERS)
def test_notebooks_run(name, folder):
    """Their cells of code, one after the other, with other values in the first one."""
    write_model_and_facts(folder, paraphrased=True)
    if name == "read_a_study":
        Path("study.yaml").write_text(STUDY, encoding="utf-8")
        package.run_study("study.yaml", "study")
    notebook = json.loads((ROOT / "examples" / f"{name}.ipynb").read_text(encoding="utf-8"))
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    names: dict[str, object] = {}
    for text in (PARAMETERS[name], *code[1:]):
        exec(compile(text, name, "exec"), names)
