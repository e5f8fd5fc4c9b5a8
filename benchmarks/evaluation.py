"""Teacher-forced scoring beside the loop of the literature, in one run.

    python benchmarks/evaluation.py [--records 32] [--repeats 3] [--further]

SmolLM2-135M, CounterFact (`RETCON_DATA`, else ../shared/data; the starter set where there is none).
The loop is the tests' oracle: each record's sequences, 26 in CounterFact, as one batch padded on
the right, with all logits. The ways take turns and medians are compared. Exact match is no part of
the loop, so what it takes is told beside the ratio. --further: in place of these, what further
scores take beside those of prompts, and texts of 32 tokens beside `model.generate`, one by one.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

from machine import cases, parser_of, source, tests_on_path
from retcon.algebra.delta import LowRankDelta
from retcon.cli.console import quiet_libraries
from retcon.edits import Case
from retcon.model.generate import greedy
from retcon.model.handle import ModelHandle
from retcon.model.load import load
from retcon.model.overlay import Deltas, Overlay
from retcon.run.evaluate import score
from retcon.scoring.exact_match import draft, exact_matches
from retcon.scoring.metrics.freely import NEW_TOKENS
from retcon.scoring.score import prompts
from retcon.scoring.teacher_forced import Ask, predict

with tests_on_path():
    from oracles import score_one_batch

T = TypeVar("T")
Pairs = list[tuple[float, int]]
LAYER = 1


def records(count: int) -> tuple[list[Case], str]:
    """Some cases with both targets, and where they are from."""
    return cases(count, seed=0), source()


def score_together(model: ModelHandle, cases: Sequence[Case], updates: Sequence[Deltas]) -> Pairs:
    """Mean NLL and hits of every prompt with both targets; case i under update i, if any."""
    asks = [
        Ask(*model.tokens.continuation(prompt.text, str(target)), i if updates else 0)
        for i, case in enumerate(cases)
        for prompt in prompts(case)
        for target in (case.edit.target, case.edit.target_old)
    ]
    found = predict(Overlay(model=model, updates=updates), asks)
    return [
        (
            -sum(seen.logp) / len(seen.logp),
            sum(a == b for a, b in zip(ask.ids[ask.start :], seen.top, strict=True)),
        )
        for ask, seen in zip(asks, found, strict=True)
    ]


def score_each(model: ModelHandle, cases: Sequence[Case]) -> Pairs:
    """The literature's loop on the model as it is."""
    return [pair for case in cases for pair in score_one_batch(model, case)]


def score_written(
    model: ModelHandle,
    cases: Sequence[Case],
    updates: Sequence[Deltas],
    score: Callable[[Case], Pairs],
) -> Pairs:
    """Write each update, score its case, restore."""
    found: Pairs = []
    for case, deltas in zip(cases, updates, strict=True):
        with model.scratch():
            model.write(deltas)
            found += score(case)
    return found


def evaluation_speedup(model: ModelHandle, count: int = 32, repeats: int = 3) -> dict[str, object]:
    """All prompts and both targets of some records on the unedited model."""
    cases, source = records(count)
    seconds, results = alternate(
        {
            "fast": lambda: score_together(model, cases, ()),
            "literature": lambda: score_each(model, cases),
        },
        repeats,
    )
    return {
        "evaluation_speedup": seconds["literature"] / seconds["fast"],
        **{f"{name}_seconds": value for name, value in seconds.items()},
        **agreement(results["fast"], results["literature"]),
        **exact_match(model, cases, ()),
        **about(cases, source, repeats),
    }


def single_schedule_speedup(
    model: ModelHandle, count: int = 32, repeats: int = 3
) -> dict[str, object]:
    """As many single edits, solved: each case under its own update, written or laid over."""
    cases, source = records(count)
    updates = stand_ins(model, len(cases))
    seconds, results = alternate(
        {
            "overlay": lambda: score_together(model, cases, updates),
            "written_fast": lambda: score_written(
                model, cases, updates, lambda case: score_together(model, [case], ())
            ),
            "written_literature": lambda: score_written(
                model, cases, updates, lambda case: score_one_batch(model, case)
            ),
        },
        repeats,
    )
    return {
        "single_schedule_speedup": seconds["written_literature"] / seconds["overlay"],
        "against_written_fast": seconds["written_fast"] / seconds["overlay"],
        **{f"{name}_seconds": value for name, value in seconds.items()},
        **agreement(results["overlay"], results["written_literature"]),
        **exact_match(model, cases, updates),
        **about(cases, source, repeats),
        "updates": f"rank 1 at layer {LAYER}, random, a tenth of the matrix's norm",
    }


# Scores that are observed together, by the name of one of them.
FURTHER = {
    "said": ("said",),
    "neighbours": ("leaks",),
    "questions": ("said_question", "said_chat"),
    "negation": ("negated",),
    "divergence": ("KL_neighbours",),
}


def further_cost(model: ModelHandle, count: int = 16, repeats: int = 1) -> dict[str, object]:
    """Seconds of further scores, those of prompts with them, in units of the latter's."""
    cases, source = records(count)
    asked: dict[str, tuple[str, ...]] = {"prompts": (), **FURTHER}
    if not model.tokens.tokenizer.chat_template:
        asked["questions"] = ("said_question",)
    asked["all"] = tuple(name for names in asked.values() for name in names)
    seconds, _ = alternate(
        {
            name: lambda names=names: score(model, cases, metrics=names)
            for name, names in asked.items()
        },
        repeats,
    )
    heads = [model.tokens.prompt(text) for c in cases for text in (c.edit.text, *c.paraphrases)]
    texts, _ = alternate(
        {
            "together": lambda: greedy(
                Overlay(model=model), heads, [NEW_TOKENS] * len(heads), [0] * len(heads)
            ),
            "one by one": lambda: [one_by_one(model, head) for head in heads],
        },
        repeats,
    )
    return {
        **{f"further_{name}_ratio": value / seconds["prompts"] for name, value in seconds.items()},
        "prompts_seconds": seconds["prompts"],
        "texts_speedup": texts["one by one"] / texts["together"],
        "texts": len(heads),
        **about(cases, source, repeats),
    }


def one_by_one(model: ModelHandle, head: Sequence[int]) -> Tensor:
    """A continuation by transformers alone."""
    generate = model.model.generate
    assert callable(generate)
    ids = torch.tensor([list(head)], device=model.device)
    return generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=0,
    )


def stand_ins(model: ModelHandle, count: int) -> list[Deltas]:
    """Updates of a single edit's shape and about its size: scoring takes no longer for others."""
    site, generator = model.site(LAYER), torch.Generator().manual_seed(0)
    size = 0.1 * float(site.weight.norm()) / (site.d_out * site.d_in) ** 0.5
    return [
        {
            LAYER: LowRankDelta(
                left=size * torch.randn(1, site.d_out, generator=generator),
                right=torch.randn(1, site.d_in, generator=generator),
            )
        }
        for _ in range(count)
    ]


def alternate(
    ways: dict[str, Callable[[], T]], repeats: int
) -> tuple[dict[str, float], dict[str, T]]:
    """Median seconds and the last result of each way; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, T] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            results[name] = way()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(found) for name, found in seconds.items()}, results


def agreement(found: Pairs, wanted: Pairs) -> dict[str, object]:
    pairs = list(zip(found, wanted, strict=True))
    return {
        "largest_nll_difference": max(abs(a[0] - b[0]) for a, b in pairs),
        "largest_relative_nll_difference": max(abs(a[0] - b[0]) / abs(b[0]) for a, b in pairs),
        "different_hits": sum(a[1] != b[1] for a, b in pairs),
        "scores": len(pairs),
    }


def exact_match(
    model: ModelHandle, cases: Sequence[Case], updates: Sequence[Deltas]
) -> dict[str, object]:
    """What deciding exact match takes, drafts included, if it shared no pass with the scores."""
    edits, overlay = [case.edit for case in cases], Overlay(model=model, updates=updates)
    wanted = [(edit.target,) for edit in edits]
    started = time.perf_counter()
    drafts = [
        draft(model.tokens, edit.text, edit.target, i if updates else 0)
        for i, edit in enumerate(edits)
    ]
    said = exact_matches(overlay, wanted, drafts, predict(overlay, drafts))
    return {"exact_match_seconds": time.perf_counter() - started, "said": sum(said)}


def about(cases: Sequence[Case], source: str, repeats: int) -> dict[str, object]:
    return {"records": len(cases), "data": source, "repeats": repeats}


# Without and with `--further`.
WORK: tuple[tuple[Callable[[ModelHandle, int, int], dict[str, object]], ...], ...] = (
    (evaluation_speedup, single_schedule_speedup),
    (further_cost,),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--further", action="store_true")
    chosen = parser.parse_args(arguments)
    quiet_libraries()
    os.environ["RETCON_CACHE_LIMIT"] = "0"  # what is timed is computed
    model = load(chosen.model)
    score_each(model, records(1)[0])  # the first pass of a process is slow
    found = {
        work.__name__: work(model, chosen.records, chosen.repeats) for work in WORK[chosen.further]
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
