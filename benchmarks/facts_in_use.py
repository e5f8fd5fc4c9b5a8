"""Facts in use: what of a set is said where its adapter is served by transformers and PEFT alone.

    python benchmarks/facts_in_use.py
    python benchmarks/facts_in_use.py --method memit --set merge_subjects=false --json FILE
    python benchmarks/facts_in_use.py --until-said 2 --subjects lumora-kettle light-bulb
    python benchmarks/facts_in_use.py --set lookup=prompt --also 1
    python benchmarks/facts_in_use.py --model toyworld --facts toyworld
    python benchmarks/facts_in_use.py --table docs/results/facts-in-use.jsonl

The patch is made and exported by Retcon; no code of Retcon takes part in the asking, which is
greedy. A continuation says a fact if it begins with the target; an answer to a question, if it
names it. Probes are counted that were right before, and are not afterwards. Intervals are Wilson's,
by subject. Of the toy world four facts are made about each of sixteen subjects: its own, and three
that it has not.

`--also N` writes the first N paraphrases of each fact, too, as facts of their own, which are then
no paraphrases. `--before FILE` keeps what the untouched model answers, for the next row. `--json`
adds a row to a file, and `--table` prints such a file.
"""

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import retcon
from machine import parser_of
from retcon.cli.choices import parse_settings
from retcon.cli.console import quiet_libraries
from retcon.data.held_out import held_out
from retcon.edits import Case, Edit
from retcon.model.load import checkpoint_folder
from retcon.run.repair import edit_until_said
from retcon.scoring.intervals import CaseMeans, Estimate, mean
from retcon.toyworld.world import RELATIONS, toy_cases, world

# Tokens that a model may write behind an answer that comes first, and beside one that may be
# anywhere in a sentence; texts that run together.
_BEHIND, _BEFORE, _TOGETHER = 3, 20, 32
_TOY_SUBJECTS = 16
# Kinds of probes, whose answer should stay.
CHANGE = ("same subject", "neighbours")
COLUMNS = ("own prompt", "also", "paraphrases", "question", "chat template", *CHANGE)


class Asked(NamedTuple):
    """A text that the model continues, and the answer that is looked for.

    Attributes:
        kind: a column of the table.
        fact, subject: whose it is.
        begins: whether the answer has to come first.
    """

    kind: str
    fact: str
    subject: str
    text: str
    answer: str
    begins: bool


class Row(NamedTuple):
    """What a patch comes to: shares by kind, perplexity by that of before, and who is not said."""

    shares: dict[str, Estimate | None]
    perplexity: float
    seconds_a_fact: float
    written: int
    not_said: list[str]

    def record(self) -> dict[str, Any]:
        """All of it, for JSON."""
        shares = {kind: one and one._asdict() for kind, one in self.shares.items()}
        return {**self._asdict(), "shares": shares}


class Served(NamedTuple):
    """A model and its tokenizer, as transformers loads them."""

    model: Any
    tokenizer: Any

    def answers(self, asked: Sequence[Asked]) -> list[bool]:
        """Tell of each text whether its answer is said; texts of one length run together."""
        order = sorted(range(len(asked)), key=lambda i: (asked[i].begins, len(asked[i].text)))
        right: dict[int, bool] = {}
        for first in range(0, len(order), _TOGETHER):
            places = order[first : first + _TOGETHER]
            for i, text in zip(places, self._written([asked[i] for i in places]), strict=True):
                right[i] = says(text, asked[i])
        return [right[i] for i in range(len(asked))]

    def _written(self, asked: Sequence[Asked]) -> list[str]:
        batch = self.tokenizer([one.text for one in asked], return_tensors="pt", padding=True)
        longest = max(len(ids) for ids in self.tokenizer([one.answer for one in asked]).input_ids)
        with torch.no_grad():
            ids = self.model.generate(
                **batch,
                do_sample=False,
                max_new_tokens=longest + (_BEHIND if asked[0].begins else _BEFORE),
                pad_token_id=self.tokenizer.pad_token_id,
            )
        behind = ids[:, batch["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(behind, skip_special_tokens=True)

    def perplexity(self, texts: Sequence[str]) -> float:
        """Perplexity of texts, each by itself."""
        total, count = 0.0, 0
        for text in texts:
            ids = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
            with torch.no_grad():
                loss = self.model(**ids, labels=ids["input_ids"]).loss
            predicted = ids["input_ids"].shape[1] - 1
            total, count = total + float(loss) * predicted, count + predicted
        return float(torch.tensor(total / count).exp())


def says(text: str, asked: Asked) -> bool:
    """Tell whether a text says an answer, as whole words, whatever is capitalised."""
    answer = rf"(?<!\w){re.escape(asked.answer.lower())}(?!\w|[.,]\d)"
    words = " ".join(text.lower().split())
    return bool((re.match if asked.begins else re.search)(answer, words))


def questions(tokenizer: Any, cases: Sequence[Case], also: int = 0) -> Iterator[Asked]:
    """All that is asked about some facts.

    Args:
        also: so many paraphrases of each are written, too.
    """
    for case in cases:

        def asked(
            kind: str, text: str, answer: str, *, begins: bool = True, edit: Edit = case.edit
        ) -> Asked:
            return Asked(kind, edit.id, edit.subject, text, answer, begins)

        target = case.edit.target
        yield asked("own prompt", case.edit.text, target)
        for i, text in enumerate(case.paraphrases):
            yield asked("also" if i < also else "paraphrases", text, target)
        for text in case.questions:
            yield asked("question", f"Question: {text}\nAnswer:", target, begins=False)
            if tokenizer.chat_template:
                yield asked("chat template", in_chat(tokenizer, text), target, begins=False)
        for probe in case.locality:
            same = case.edit.subject.lower() in probe.prompt.lower()
            yield asked("same subject" if same else "neighbours", probe.prompt, probe.answer)
        if case.edit.target_old is not None:
            for text in case.neighbours:
                yield asked("neighbours", text, case.edit.target_old)


def in_chat(tokenizer: Any, question: str) -> str:
    """The question in the chat template, up to where the model answers."""
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def load(folder: str, adapter: str | None = None) -> Served:
    """Load a model, and an adapter on it, with transformers and PEFT."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    return Served(model.eval(), load_tokenizer(folder))


def load_tokenizer(folder: str) -> Any:
    """Load the tokenizer, for texts that are padded on the left."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def measured(
    folder: str,
    cases: Sequence[Case],
    make: Callable[[], retcon.Patch],
    kept: Path | None = None,
    also: int = 0,
) -> Row:
    """Make a patch, export it, and ask the served model.

    Args:
        also: so many paraphrases of each fact are written, too.
        kept: a file in which answers of the untouched model are kept.
    """
    started = time.perf_counter()
    patch = make()
    seconds = (time.perf_counter() - started) / len(cases)
    texts = held_out(passages=24).texts
    asked = list(questions(load_tokenizer(folder), cases, also))
    before, plain = answers_before(folder, asked, texts, kept)
    with tempfile.TemporaryDirectory() as place:
        patch.export("peft", Path(place) / "adapter", model=folder)
        served = load(folder, str(Path(place) / "adapter"))
        after, edited = served.answers(asked), served.perplexity(texts)
    rows = list(zip(asked, before, after, strict=True))
    kinds = dict.fromkeys(one.kind for one in asked)
    shares = {kind: _share([row for row in rows if row[0].kind == kind]) for kind in kinds}
    own = [one.fact for one, _, now in rows if one.kind == "own prompt" and not now]
    return Row(shares, edited / plain, seconds, len(patch.edits), own)


def answers_before(
    folder: str, asked: Sequence[Asked], texts: Sequence[str], kept: Path | None
) -> tuple[list[bool], float]:
    """What the untouched model answers right, and its perplexity: asked for once."""
    known = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.exists() else {}
    name = json.dumps([folder, [one.text for one in asked], texts])
    if name not in known:
        base = load(folder)
        known[name] = [base.answers(asked), base.perplexity(texts)]
        if kept is not None:
            kept.write_text(json.dumps(known), encoding="utf-8")
    right, perplexity = known[name]
    return right, perplexity


def _share(rows: Sequence[tuple[Asked, bool, bool]]) -> Estimate | None:
    """The share that is said; of probes, the share of those right before that are right no more."""
    if rows[0][0].kind in CHANGE:
        counted = [(one, not after) for one, before, after in rows if before]
    else:
        counted = [(one, after) for one, _, after in rows]
    values = {str(i): 100.0 * yes for i, (_, yes) in enumerate(counted)}
    clusters = {str(i): one.subject for i, (one, _) in enumerate(counted)}
    share = mean(CaseMeans(values, clusters, flip=100.0))
    return share and share.share()


def toy_facts() -> list[Case]:
    """Several facts a subject, in a world that knows one of each."""
    known, cases, draw = world(), toy_cases(), random.Random(0)
    facts: list[Case] = []
    for place in draw.sample(range(len(known.facts)), _TOY_SUBJECTS):
        fact, own = known.facts[place], cases[place]
        facts.append(replace(own, neighbours=own.neighbours[:4]))
        for further in range(1, 4):
            number = (fact.relation + further) % len(RELATIONS)
            first, *others = RELATIONS[number].phrasings
            target = draw.choice([one for one in known.answers[number] if one != fact.answer])
            id = f"{own.edit.id}-{further}"
            edit = Edit(id=id, prompt=first, subject=fact.subject, target=target)
            texts = tuple(text.format(fact.subject) for text in others)
            facts.append(Case(edit=edit, paraphrases=texts))
    return facts


def rewordings(cases: Sequence[Case], also: int) -> list[Edit]:
    """Facts of their own, of the first paraphrases of some facts that hold the subject once."""
    return [
        replace(case.edit, id=f"{case.edit.id}-{i}", prompt=text.replace(case.edit.subject, "{}"))
        for case in cases
        for i, text in enumerate(case.paraphrases[:also], start=1)
        if text.count(case.edit.subject) == 1
    ]


def show(row: Row) -> None:
    """One a line: shares in per cent."""
    for kind, share in row.shares.items():
        changed = ", changed" if kind in CHANGE else ""
        told = "none was right before" if share is None else shown(share)
        print(f"{kind:16} {told}{changed}, of {share.cases if share else 0}")
    print(f"{'perplexity':16} {row.perplexity:.4g}")
    print(f"{'seconds a fact':16} {row.seconds_a_fact:.4g}")
    print(f"{'facts written':16} {row.written}")
    print(f"{'not said':16} {', '.join(row.not_said) or 'none'}")


def shown(share: Estimate) -> str:
    """A share and its interval."""
    if share.low is None or share.high is None:
        return f"{share.mean:.0f} %"
    return f"{share.mean:.0f} % [{share.low:.0f}, {share.high:.0f}]"


def table(records: Sequence[dict[str, Any]]) -> str:
    """Rows of a file, as Markdown: shares in per cent, with their intervals."""
    names = [name for name in COLUMNS if any(name in one["shares"] for one in records)]
    titles = [f"{name}, changed" if name in CHANGE else name for name in names]
    lines = [["settings", *titles, "perplexity"], ["---", *["---:" for _ in [*names, ""]]]]
    for one in records:
        shares = [one["shares"].get(name) for name in names]
        cells = [shown(Estimate(**share)) if share else "–" for share in shares]
        lines.append([one["name"], *cells, f"{one['perplexity']:.3f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--facts", default="everyday", help="a file, or a set of the package")
    parser.add_argument("--subjects", nargs="+", default=[""], help="ids that begin so")
    parser.add_argument("--n", type=int, default=None, help="the first so many facts")
    parser.add_argument("--method", default=None)
    parser.add_argument("--layers", type=int, nargs="+", default=None)
    parser.add_argument("--set", action="append", help="a setting, name=value")
    parser.add_argument("--until-said", type=int, default=0, help="rounds of repair")
    parser.add_argument("--also", type=int, default=0, help="paraphrases that are written, too")
    parser.add_argument("--before", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--name", default="", help="of the row")
    parser.add_argument("--table", type=Path, default=None)
    chosen = parser.parse_args(arguments)
    if chosen.table is not None:
        lines = chosen.table.read_text(encoding="utf-8").splitlines()
        print(table([json.loads(line) for line in lines]))
        return
    quiet_libraries()
    cases = toy_facts() if chosen.facts == "toyworld" else retcon.load_cases(chosen.facts)
    cases = [case for case in cases if case.edit.id.startswith(tuple(chosen.subjects))][: chosen.n]
    folder = str(checkpoint_folder(chosen.model))

    model = retcon.load(chosen.model)
    how: dict[str, Any] = {
        "method": chosen.method,
        "layers": chosen.layers,
        "settings": parse_settings(chosen.set),
    }

    def make() -> retcon.Patch:
        if not chosen.until_said:
            also = rewordings(cases, chosen.also)
            return retcon.edit(model, [*(case.edit for case in cases), *also], **how)
        repaired = edit_until_said(model, cases, rounds=chosen.until_said, **how)
        print(repaired.told())
        return repaired.patch

    row = measured(folder, cases, make, chosen.before, chosen.also)
    show(row)
    if chosen.json is not None:
        settings = {**how, "until_said": chosen.until_said, "also": chosen.also}
        record = {"name": chosen.name, "facts": len(cases), "settings": settings, **row.record()}
        with chosen.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
