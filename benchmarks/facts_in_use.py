"""Facts in use: what of a set is said where its adapter is served by transformers and PEFT alone.

    python benchmarks/facts_in_use.py
    python benchmarks/facts_in_use.py --method memit --set merge_subjects=false --json FILE
    python benchmarks/facts_in_use.py --until-said 2 --subjects lumora-kettle light-bulb
    python benchmarks/facts_in_use.py --model toyworld --facts toyworld

The patch is made and exported by Retcon; no code of Retcon takes part in the asking, which is
greedy. A continuation says a fact if it begins with the target; an answer to a question, if it
names it. Probes are counted that were right before, and are not afterwards. Of the toy world four
facts are made about each of sixteen subjects: its own, and three that it has not.
"""

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from retcon.toyworld.world import RELATIONS, toy_cases, world

# Tokens that a model may write behind an answer that comes first, and beside one that may be
# anywhere in a sentence; texts that run together.
_BEHIND, _BEFORE, _TOGETHER = 3, 20, 32
_TOY_SUBJECTS = 16


class Asked(NamedTuple):
    """A text that the model continues, and the answer that is looked for.

    Attributes:
        kind: a row of the table.
        fact: whose it is.
        begins: whether the answer has to come first.
    """

    kind: str
    fact: str
    text: str
    answer: str
    begins: bool


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


def questions(tokenizer: Any, cases: Sequence[Case]) -> Iterator[Asked]:
    """All that is asked about some facts."""
    for case in cases:
        fact, target = case.edit.id, case.edit.target
        yield Asked("own prompt", fact, case.edit.text, target, True)
        for text in case.paraphrases:
            yield Asked("paraphrases", fact, text, target, True)
        for text in case.questions:
            yield Asked("question", fact, f"Question: {text}\nAnswer:", target, False)
            if tokenizer.chat_template:
                yield Asked("chat template", fact, in_chat(tokenizer, text), target, False)
        for probe in case.locality:
            same = case.edit.subject.lower() in probe.prompt.lower()
            kind = "same subject" if same else "neighbours"
            yield Asked(kind, fact, probe.prompt, probe.answer, True)
        if case.edit.target_old is not None:
            for text in case.neighbours:
                yield Asked("neighbours", fact, text, case.edit.target_old, True)


def in_chat(tokenizer: Any, question: str) -> str:
    """The question in the chat template, up to where the model answers."""
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def load(folder: str, adapter: str | None = None) -> Served:
    """Load a model, and an adapter on it, with transformers and PEFT."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    return Served(model.eval(), tokenizer)


def measured(
    folder: str, cases: Sequence[Case], make: Callable[[], retcon.Patch]
) -> dict[str, float | list[str] | None]:
    """Make a patch, export it, and ask the served model."""
    started = time.perf_counter()
    patch = make()
    seconds = (time.perf_counter() - started) / len(cases)
    texts = held_out(passages=24).texts
    base = load(folder)
    asked = list(questions(base.tokenizer, cases))
    before, plain = base.answers(asked), base.perplexity(texts)
    with tempfile.TemporaryDirectory() as place:
        patch.export("peft", Path(place) / "adapter", model=folder)
        served = load(folder, str(Path(place) / "adapter"))
        after, edited = served.answers(asked), served.perplexity(texts)
    rows = list(zip(asked, before, after, strict=True))
    kinds = dict.fromkeys(one.kind for one in asked)
    shares: dict[str, float | list[str] | None] = {kind: _share(rows, kind) for kind in kinds}
    own = [one.fact for one, _, now in rows if one.kind == "own prompt" and not now]
    figures = {"perplexity": edited / plain, "seconds a fact": seconds}
    return {**shares, **figures, "facts written": float(len(patch.edits)), "not said": own}


def _share(rows: Sequence[tuple[Asked, bool, bool]], kind: str) -> float | None:
    """The share that is said; of probes, the share of those right before that are right no more."""
    chosen = [(before, after) for one, before, after in rows if one.kind == kind]
    if kind in ("same subject", "neighbours"):
        kept = [after for before, after in chosen if before]
        return 1 - sum(kept) / len(kept) if kept else None
    return sum(after for _, after in chosen) / len(chosen)


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


def show(figures: Mapping[str, float | list[str] | None]) -> None:
    """One a line: shares in per cent."""
    for name, value in figures.items():
        if isinstance(value, list):
            print(f"{name:16} {', '.join(value) or 'none'}")
        elif value is None:
            print(f"{name:16} none was right before")
        elif name in ("perplexity", "seconds a fact", "facts written"):
            print(f"{name:16} {value:.4g}")
        else:
            changed = ", changed" if name in ("same subject", "neighbours") else ""
            print(f"{name:16} {100 * value:.0f} %{changed}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--facts", default="everyday", help="a file, or a set of the package")
    parser.add_argument("--subjects", nargs="+", default=[""], help="ids that begin so")
    parser.add_argument("--n", type=int, default=None, help="the first so many facts")
    parser.add_argument("--method", default=None)
    parser.add_argument("--layer", type=int, default=None)
    parser.add_argument("--set", action="append", help="a setting, name=value")
    parser.add_argument("--until-said", type=int, default=0, help="rounds of repair")
    parser.add_argument("--json", type=Path, default=None)
    chosen = parser.parse_args(arguments)
    quiet_libraries()
    cases = toy_facts() if chosen.facts == "toyworld" else retcon.load_cases(chosen.facts)
    cases = [case for case in cases if case.edit.id.startswith(tuple(chosen.subjects))][: chosen.n]
    folder = str(checkpoint_folder(chosen.model))

    model = retcon.load(chosen.model)
    how: dict[str, Any] = {
        "method": chosen.method,
        "layers": None if chosen.layer is None else [chosen.layer],
        "settings": parse_settings(chosen.set),
    }

    def make() -> retcon.Patch:
        if not chosen.until_said:
            return retcon.edit(model, [case.edit for case in cases], **how)
        repaired = edit_until_said(model, cases, rounds=chosen.until_said, **how)
        print(repaired.told())
        return repaired.patch

    figures = measured(folder, cases, make)
    show(figures)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
