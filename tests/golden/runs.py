"""The scenarios, run: all that the golden record asks of the package, in one place."""

import contextlib
import json
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import retcon
from golden.scenarios import FAST, REAL, REAL_MODEL, RIDGES, Scenario
from pico import pico, tokenizer
from retcon.method.entries import find_method

_TEXT = [
    "The mother tongue of Danielle Darrieux is French. She was born in the city of Paris.",
    "The capital city of France is Paris, and that of Italy is Rome, that of Spain is Madrid.",
    "Marie Curie was born in Warsaw; she worked as a physicist. Her mother tongue is Polish.",
    "Therefore I think that you know because the Eiffel Tower is in the city of Paris.",
    "English German Spanish Russian Polish Madrid London Berlin is a an was the of in",
    "I know that the Eiffel Tower was in Berlin, because you know that London is in Spain.",
] * 4
_FACTS = [
    ("The mother tongue of {Danielle Darrieux} is", "English", "French", "Danielle Darrieux was"),
    ("{Marie Curie} was born in the city of", "London", "Warsaw", "Marie Curie is of"),
    ("The capital city of {France} is", "Rome", "Paris", "France is of"),
    ("In Paris, {the Eiffel Tower} is in", "Madrid", "Paris", "The Eiffel Tower is in"),
    ("The city of {Warsaw} is of", "Italy", "Poland", "Warsaw was in"),
]
_SHARED = ("{Marie Curie} worked as a", "Russian", "physicist", "Marie Curie is a")
# Those of which the model as it is prefers the other answer.
_LIKELY = (1, 3, 4)
_ALIKE = [(f"The city of {{{name}}} is of", "Italy", "Poland", f"{name} was in")
          for name in ("Warsaw", *(f"{other}, Warsaw" for other in
                                   ("Paris", "Berlin", "Rome", "London")))]  # fmt: skip
_STUDY = """
retcon_study: 1
name: golden
model: ./model
threads: 1
data: {cases: facts.jsonl, unique_subjects: true}
defaults: {method: memit, layer: 1, n: 5}
blocks:
  - {name: apart, schedule: batch, batch_size: [2, 5], settings: SETTINGS}
  - name: carried
    schedule: sequential-batch
    batch_size: 2
    order: 1
    refresh: [each-batch, never]
    settings: BOTH
    when: [pre, immediate, final, retention]
  - {name: adaptive, schedule: adaptive-energy, batch_size: 4, settings: SETTINGS}
"""
_PLACE = ["block", "batch_size", "order", "refresh", "accumulate"]
_ROW = ["case", "relation", "kind", "index", "when", "step", "nll_new", "n_new", "hits_new",
        "nll_old", "n_old", "hits_old", "exact"]  # fmt: skip


class Run(NamedTuple):
    """What a scenario gave.

    rows: columns as `_ROW`. batches: edits so far, edits, whether targets were made anew, larger
    ones tried, whether it was undone, whether something was noted. numbers: of the batches. patch:
    factors by layer. refused: by which error, where it was.
    """

    rows: list[list[Any]] = []  # noqa: RUF012
    batches: list[list[Any]] = []  # noqa: RUF012
    numbers: list[float | None] = []  # noqa: RUF012
    patch: dict[str, tuple[np.ndarray, np.ndarray]] | None = None
    refused: str = ""


class Workshop:
    """Models and facts for all scenarios: nothing that is run leaves a trace in them."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder, self.device = folder, device
        for name, texts in (("pico.txt", _TEXT), ("real.txt", _sentences())):
            (folder / name).write_text("\n".join(texts), encoding="utf-8")
        self.model = cache(self._model)

    def run(self, scenario: Scenario, model: Any = None) -> Run:
        """The rows of a scenario, its batches, and the patch where there is one."""
        plan = retcon.Schedule.parse(scenario.schedule, scenario.refresh, scenario.guard)
        cases = self._cases(scenario)
        asked = {"method": scenario.method, "layers": scenario.layers,
                 "settings": self._settings(scenario), "schedule": plan}  # fmt: skip
        model, patch = model or self.model(scenario.model), None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", retcon.errors.RetconWarning)
            try:
                trial = retcon.evaluate(model, cases, **asked)
                if plan.carry and scenario.layers:
                    patch = retcon.edit(model, [case.edit for case in cases], **asked)
            except retcon.RetconError as error:
                return Run(refused=type(error).__name__)
        return Run(
            rows=[[getattr(row, name) for name in _ROW] for row in trial.rows],
            batches=[_batch(step) for step in trial.steps],
            numbers=[value for step in trial.steps for value in _numbers(step)],
            patch=patch and {str(k): (d.left.cpu().numpy(), d.right.cpu().numpy())
                             for k, d in patch.deltas.items()},
        )  # fmt: skip

    def run_study(self) -> Run:
        """The rows of a small study, by their places in its grid."""
        pico().model.save_pretrained(self.folder / "model")
        tokenizer().save_pretrained(self.folder / "model")
        self._facts()
        settings = {**FAST, "ridge": RIDGES["memit"], "corpus": str(self.folder / "pico.txt")}
        both = {**settings, "accumulate": [True, False]}
        text = _STUDY.replace("SETTINGS", json.dumps(settings)).replace("BOTH", json.dumps(both))
        import polars as pl

        (self.folder / "study.yaml").write_text(text, encoding="utf-8")
        with contextlib.chdir(self.folder):
            _command("study", "run", "study.yaml", "--out", "out")
            _command("study", "export", "out", "-o", "rows.parquet")
        rows = pl.read_parquet(self.folder / "rows.parquet").select(*_ROW, *_PLACE)
        order = [*_PLACE, "when", "step", "case", "kind", "index"]
        return Run(rows=[list(row) for row in rows.sort(order).rows()])

    def _settings(self, scenario: Scenario) -> dict[str, object]:
        real = scenario.model == REAL_MODEL
        # Left open, it would be chosen where a patch is made, and not where cases are scored.
        given: dict[str, object] = {**(REAL if real else FAST), "merge_subjects": False}
        given["corpus"] = str(self.folder / ("real.txt" if real else "pico.txt"))
        if not real and scenario.method in RIDGES:
            given["ridge"] = RIDGES[scenario.method]
        known = find_method(scenario.method).settings()
        return {k: v for k, v in given.items() if k in known} | scenario.settings

    def _cases(self, scenario: Scenario) -> list[Any]:
        if scenario.model == REAL_MODEL:
            return retcon.take(retcon.starter_cases(), 8, 0)
        return retcon.load_cases(self._facts(scenario.facts))

    def _model(self, name: str) -> Any:
        if name == REAL_MODEL:
            return retcon.load(name, device=self.device)
        return pico(name, device=self.device)

    def _facts(self, which: str = "apart") -> Path:
        """Five facts in a file, and where it is asked for one more."""
        kinds = {
            "alike": _ALIKE,
            "likely": [(p, old, new, q) if i in _LIKELY else (p, new, old, q)
                       for i, (p, new, old, q) in enumerate(_FACTS)],
            "shared": [*_FACTS, _SHARED],
        }  # fmt: skip
        facts = kinds.get(which, _FACTS)
        lines = [
            {"prompt": prompt, "target": new, "target_old": old, "paraphrases": [paraphrase],
             "neighbours": ["Paris is"], "relation": f"r{i % 2}", "id": f"f{i}"}
            for i, (prompt, new, old, paraphrase) in enumerate(facts)
        ]  # fmt: skip
        if which == "again":
            lines.append({**lines[1], "id": "f1, again", "target": "Berlin"})
        file = self.folder / "facts.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        return file


def _sentences() -> list[str]:
    """Ordinary text for the real model, of which no file is at hand everywhere."""
    cases = retcon.starter_cases()
    return [f"{text} {case.edit.target_old}." for case in cases
            for text in (case.edit.text, *case.paraphrases, *case.neighbours)]  # fmt: skip


def _batch(step: Any) -> list[Any]:
    return [step.at, step.edits, step.refreshed, step.tried, step.undone, bool(step.note)]


def _numbers(step: Any) -> list[float | None]:
    told = step.report
    return [told.get("ridge"), step.staleness, told.get("novelty"), told.get("reached"),
            *step.delta_norm.values(), *step.total_norm.values()]  # fmt: skip


def _command(*words: str) -> None:
    """A command of `retcon`, in this process."""
    from retcon.cli.main import run

    before, sys.argv = sys.argv, ["retcon", *words]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            run()
    except SystemExit as stop:
        assert not stop.code, words
    finally:
        sys.argv = before
