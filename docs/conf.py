"""Settings of the documentation site, which `make docs` builds.

Pages that the code tells are written first (`write_pages.py`); `llms.txt`, a list of all pages for
programs that read text, is written last.
"""

import re
import sys
from pathlib import Path
from typing import Any

import retcon

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import write_pages  # noqa: E402  # beside this file

SUMMARY = (
    "Rewrite facts inside language models, keep each edit as a small patch, and measure what it "
    "costs."
)

project = "Retcon"
author = "The Retcon developers"
copyright = "The Retcon developers, MIT licence"
version = release = retcon.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
default_role = "code"
smartquotes = False  # which would make a dash of the two hyphens of an option
myst_heading_anchors = 4
autodoc_typehints = "none"
autodoc_member_order = "bysource"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"Retcon {version}"
html_show_sphinx = False


def first_sentences(path: Path) -> str:
    """The first paragraph of a page behind its title, without links."""
    paragraphs = path.read_text(encoding="utf-8").split("\n\n")
    prose = next((text for text in paragraphs[1:] if re.match(r"[*`\w]", text)), "")
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(prose.split()))
    return plain.replace("**", "")


def without_strangers(app: Any, page: str, source: list[str]) -> None:
    """Name folders and Markdown files outside of docs, to which a page of the site cannot link."""

    def name(link: re.Match[str]) -> str:
        target = (DOCS / page).parent / link[2]
        outside = not target.resolve().is_relative_to(DOCS)
        return link[1] if outside and (target.is_dir() or target.suffix == ".md") else link[0]

    source[0] = re.sub(r"\[([^]]+)\]\((\.\.[^)#]*)\)", name, source[0])


def navigation() -> list[tuple[str, list[tuple[str, str]]]]:
    """The parts of the site, each with its pages: their titles, and files without their ending."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    parts: list[tuple[str, list[tuple[str, str]]]] = []
    for block in blocks:
        (caption,) = re.findall(r":caption: (.*)", block)
        parts.append((caption, re.findall(r"^(.+) <(.+)>$", block, re.MULTILINE)))
    return parts


def llms() -> str:
    """The list of all pages, each as plain Markdown, for programs that read text (llmstxt.org)."""
    parts = [f"# Retcon\n\n> {SUMMARY}\n"]
    for caption, pages in navigation():
        parts.append(f"## {caption}\n")
        for title, page in pages:
            about = first_sentences(DOCS / f"{page}.md")
            parts.append(f"- [{title}](_sources/{page}.md.txt): {about}")
        parts.append("")
    return "\n".join(parts)


def setup(app: Any) -> None:
    """Write the reference before Sphinx looks for pages, and llms.txt after it is done."""
    write_pages.write_reference()
    app.connect("source-read", without_strangers)
    app.connect(
        "build-finished",
        lambda app, error: error or (Path(app.outdir) / "llms.txt").write_text(llms(), "utf-8"),
    )
