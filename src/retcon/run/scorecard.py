"""A scorecard of a patch, on one page: what it changes, how it scores, what its file gives away."""

from collections.abc import Sequence
from dataclasses import dataclass

from retcon.edits import Case
from retcon.escaping import code, markdown
from retcon.model.handle import ModelHandle
from retcon.patch.audit import COLUMNS, Audit
from retcon.patch.patch import Patch
from retcon.progress import Progress, silent
from retcon.run.evaluate import score
from retcon.scoring.measured import Measured
from retcon.scoring.metrics import METRICS, estimate

# What the model says first, comparisons last.
SCORES = ("said", "stays", "said_paraphrase", "said_truth", "perplexity", "ES", "PS", "NS")
_OBSERVED = ("said", "said_truth", "perplexity")
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """A patch, its scores without it and with it, and its audit."""

    patch: Patch
    facts: int
    scores: Measured
    audit: Audit

    def lines(self) -> list[list[str]]:
        """A row for each score: its name, and its level without the patch and with it."""
        times = [self.scores.at(when) for when in self.scores.times]
        rows: list[list[str]] = []
        for name in SCORES:
            metric = METRICS.find(name)
            unit = f", {metric.scale.unit}" if metric.scale.unit else ""
            levels = [metric.scale.told(estimate(observed, name)) for observed in times]
            rows.append([f"{metric.title}{unit}", *levels])
        return rows

    def markdown(self) -> str:
        """The card as a page of Markdown."""
        about = self.patch.about
        made = (
            f"Made by Retcon {markdown(about.retcon)} with {markdown(about.method)} "
            f"({markdown(about.scheduled)}), layers {', '.join(map(str, about.layers))}, for "
            f"{markdown(about.model)} (fingerprint {code(about.base[:16])})."
        )
        scored = f"Over {self.facts:,} facts, with 95 % intervals. Without: the untouched model."
        return "\n".join(
            [
                f"# A patch of {len(self.patch.edits):,} facts in {markdown(about.model)}\n",
                f"{made}\n",
                "## Scores\n",
                f"{scored}\n",
                *_table(["", "without", "with"], self.lines()),
                "\n## What the file gives away\n",
                *(f"{markdown(sentence)}\n" for sentence in self.audit.sentences()),
                *_table(COLUMNS, self.audit.lines()[:_SHOWN]),
                "",
            ]
        )


def scorecard(
    model: ModelHandle,
    patch: Patch,
    audit: Audit,
    cases: Sequence[Case],
    progress: Progress = silent,
) -> Scorecard:
    """Score a patch for its card; the model is as before afterwards.

    Args:
        model: the base model.
        patch: a patch of it.
        audit: its audit.
        cases: facts, and the prompts by which they are judged.
        progress: is told what is done.

    Raises:
        PatchMismatch: the patch is of another model.
        InvalidEdit: a case that this model's tokens cannot tell.
    """
    seen = score(model, cases, patch=patch, metrics=_OBSERVED, progress=progress)
    return Scorecard(patch=patch, facts=len(cases), scores=seen, audit=audit)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    rule = ["---" for _ in columns]
    return [f"| {' | '.join(map(markdown, line))} |" for line in (columns, rule, *rows)]
