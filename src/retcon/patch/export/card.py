"""The README of an export: what it is, what it changes, and how it was made."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from retcon.escaping import code, fenced, markdown
from retcon.patch.patch import Patch

_SHOWN = 50


def write_card(
    folder: Path, patch: Patch, *, relation: str, library: str, use: Sequence[str], remark: str = ""
) -> None:
    """Write README.md with the front matter that the Hugging Face hub reads.

    Args:
        relation: `adapter` or `finetune`.
        use: lines of Python that load it, where they run in the folder.
        remark: a line of the front matter, `# …`.
    """
    about = patch.about
    front: dict[str, object] = {
        "library_name": library,
        "base_model_relation": relation,
        "tags": ["model-editing", "knowledge-editing", "retcon"],
    }
    # The hub knows models as OWNER/NAME; a folder's name would mean another model there.
    if about.model.count("/") == 1 and about.model[0] not in "./~":
        front["base_model"] = about.model
    words = [record.verdict or "–" for record in about.edits]
    facts = [
        f"| {' | '.join(map(markdown, (e.id, e.text, e.target_old or '–', e.target, word)))} |"
        for e, word in zip(patch.edits[:_SHOWN], words, strict=False)
    ]
    more = len(patch.edits) - len(facts)
    lines = [
        "---",
        *([remark] if remark else []),
        yaml.safe_dump(front, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {_count(len(patch.edits))} rewritten in {markdown(about.model)}",
        "",
        f"Made by Retcon {markdown(about.retcon)} with {markdown(about.method)} "
        f"({markdown(about.scheduled)}), layers {', '.join(map(str, about.layers))}; base model "
        f"fingerprint {code(about.base[:16])}.",
        "",
        "In this folder:",
        "",
        fenced("\n".join(use), "python"),
        "",
        "| id | prompt | before | asked for | verdict |",
        "|---|---|---|---|---|",
        *facts,
        *([f"\n… and {more} more."] if more else []),
        "",
        "Settings:",
        "",
        fenced(json.dumps(about.settings, indent=1, ensure_ascii=False), "json"),
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _count(facts: int) -> str:
    return "1 fact" if facts == 1 else f"{facts or 'No single'} facts"
