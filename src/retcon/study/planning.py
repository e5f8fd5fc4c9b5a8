"""Plan a study: resolve each place of the grid on its model into a cell.

Nothing is loaded but facts and the models' configurations. A cell is named by the fingerprint of
its model's weights, so cells have their names only once the models have been seen.
"""

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from retcon.data.corpus import FileCorpus, parse_corpus
from retcon.errors import InvalidStudy, RetconError, RetconWarning
from retcon.method.base import Accumulates, Alone, Method, Regularised, check_batch
from retcon.method.entries import find_method, identity
from retcon.method.presets import resolve
from retcon.model.load import find_dtype, outline
from retcon.model.structure import Outline
from retcon.registry import plugin_digest
from retcon.run.driver import check_rule
from retcon.run.schedule import Refresh, Schedule
from retcon.run.shared_keys import clashes, explained
from retcon.scoring.suites import General
from retcon.study.cells import Cell
from retcon.study.facts import Facts, Picked, load_facts, load_general
from retcon.study.points import Point, carries
from retcon.study.spec import MOST_PLACES, GridEntry, Spec
from retcon.study.study import Data, Model, Tuned, TuningRule
from retcon.study.tuning import RULE, WHOM, Tuning, candidates_of, name_of, no_score

# A model's name and dtype.
Loaded = tuple[str, str]
UNSEEN = "unseen"


class PlannedPoint(NamedTuple):
    """A point, and its cell.

    Attributes:
        point: as it was named.
        cell: None where it is refused, or its ridge is still to be tuned.
        tuning: the choice of its ridge, where there is one.
        shared: a warning of facts that are written over one another; empty where none are.
    """

    point: Point
    cell: Cell | None
    tuning: Tuning | None
    shared: str = ""


@dataclass(frozen=True)
class StudyPlan:
    """A study as it will be run.

    Attributes:
        spec: its file.
        facts: those of the file of cases.
        models: by what tells each from any other.
        places: every place of the grid.
        general: text and tasks that are read beside the facts, by their identity.
    """

    spec: Spec
    facts: Facts
    models: tuple[Model, ...]
    places: tuple[PlannedPoint, ...]
    general: Mapping[str, General]

    @property
    def data(self) -> Data:
        """The facts, as the study's record names them."""
        return self.facts.about

    @property
    def points(self) -> tuple[Point, ...]:
        """Every place of the grid, as it was named."""
        return tuple(place.point for place in self.places)

    @property
    def corpora(self) -> dict[str, str]:
        """Identity of the content of each file that second moments are read from, by its name."""
        moments = [cell.editor.get("moments") for cell in self.cells]
        names = {
            str(each["corpus"]) for each in moments if isinstance(each, dict) and "corpus" in each
        }
        corpora = {name: parse_corpus(name) for name in sorted(names)}
        files = {name: each for name, each in corpora.items() if isinstance(each, FileCorpus)}
        return {name: each.identity for name, each in files.items()}

    @property
    def plugins(self) -> dict[str, str]:
        """Sha256 of each plugin that the file names."""
        return {name: plugin_digest(Path(name).stem) for name in self.spec.plugins}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings to give before it is run, one for each block."""
        by_block: dict[str, str] = {p.point.block: p.shared for p in self.places if p.shared}
        counts = Counter(p.point.block for p in self.places if p.shared)
        return tuple(
            f"block {block!r}, in {counts[block]:,} of its places: {warning}"
            for block, warning in by_block.items()
        )

    @property
    def tunings(self) -> tuple[Tuning, ...]:
        """Every choice of a ridge, once."""
        tunings = {p.tuning.name: p.tuning for p in self.places if p.tuning is not None}
        return tuple(tunings.values())

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Cells to be run, each once: tuning first, then by model and layers, few facts first."""
        tuning = {cell.id: cell for choice in self.tunings for cell in choice.cells}
        rest = {p.cell.id: p.cell for p in self.places if p.cell is not None}
        ordered = sorted(rest.values(), key=lambda c: (c.name, c.dtype, c.layers, c.n))
        return (*tuning.values(), *(cell for cell in ordered if cell.id not in tuning))

    def beside(self, cell: Cell) -> General | None:
        """Text and tasks that are read of a cell's model beside the facts; None where none are."""
        return None if cell.general is None else self.general[cell.general]

    def cases(self, cell: Cell) -> Picked:
        """The cases of a cell."""
        return self.facts.pick(
            n=cell.n, seed=cell.seed, order=cell.order, score=cell.score, split=cell.split
        )


def warned_of(study: StudyPlan) -> StudyPlan:
    """Give the warnings of a plan, and hand it back."""
    for warning in study.warnings:
        warnings.warn(warning, RetconWarning, stacklevel=3)
    return study


def plan(
    spec: Spec,
    *,
    data: Path | None = None,
    fingerprints: Mapping[Loaded, str] | None = None,
    tuned: Iterable[Tuned] = (),
    rule: TuningRule = RULE,
    guess: bool = False,
) -> StudyPlan:
    """Plan a study: its places, and the cells that answer them.

    Args:
        spec: the study file.
        data: folder of the file of facts; None: RETCON_DATA, or beside the study file.
        fingerprints: of models that have been seen; without one a cell has no name yet.
        tuned: ridges that have been chosen.
        rule: how others are chosen.
        guess: where no ridge has been chosen, take the middle candidate, so that all cells are
            there to count.

    Raises:
        InvalidStudy: a place of the grid that makes no sense, or too few facts.
        RetconError: a model, method, layer or setting that does not exist.
    """
    facts = load_facts(spec, data)
    seen = fingerprints or {}
    entries = [each for entry in spec.entries for each in _every_layer(entry)]
    if len(entries) > MOST_PLACES:
        raise InvalidStudy(
            f"With a place for each layer the grid has {len(entries):,} places, and at most "
            f"{MOST_PLACES:,} are planned. Name the layers, or make several studies."
        )
    models = {(e.model, e.dtype): _model(e, seen.get((e.model, e.dtype), UNSEEN)) for e in entries}
    chosen = {name_of(t.model_dump(include=set(WHOM)), t.ridges): t.ridge for t in tuned}
    asked_for = dict.fromkeys(e.general for e in entries if e.general is not None)
    general = {items: load_general(items, data) for items in asked_for}
    planner = _Planner(spec, facts, models, chosen, rule, guess, general)
    places = tuple(planner.place(e) for e in entries)
    by_name = {each.identity: each for each in general.values()}
    return StudyPlan(spec, facts, tuple(models.values()), places, by_name)


@dataclass(frozen=True)
class _Planner:
    """Context that all places of a grid share.

    Attributes:
        ridges: those that were chosen, by the name of their tuning.
        rule, guess: see `plan`.
        general: text and tasks, by number of items.
    """

    spec: Spec
    facts: Facts
    models: Mapping[Loaded, Model]
    ridges: Mapping[str, float]
    rule: TuningRule
    guess: bool
    general: Mapping[int, General]

    def place(self, entry: GridEntry) -> PlannedPoint:
        """The point and the cell of a place of the grid, with the block's name in every error."""
        try:
            return self._place(entry)
        except RetconError as error:
            raise InvalidStudy(f"block {entry.block!r}: {error}") from error

    def _place(self, entry: GridEntry) -> PlannedPoint:
        self.facts.check_room(n=entry.n, seed=entry.seed, split="head")
        candidates = candidates_of(entry, self.spec)
        tuning = None if candidates is None else self._tuning(entry, candidates)
        ridge = None if tuning is None else self._ridge(tuning)
        # Until a ridge is chosen, any of the candidates tells whether the place can be run.
        known = ridge if ridge is not None or tuning is None else tuning.ridges[0]
        settings: dict[str, Any] = dict(entry.settings)
        if tuning is not None:
            settings["ridge"] = known
        schedule = schedule_of(entry)
        cell, method = self._cell(entry, settings, str(schedule))
        check_batch(method, entry.batch_size)
        check_rule(method, schedule)
        # A method that writes no weight is told at the layers that were named.
        layers = cell.layers or entry.layers or (0,)
        capacity = outline_of(entry.model).site(layers[0]).d_in
        refused = _refusal(method, entry, schedule, capacity)
        ready = refused is None and (tuning is None or ridge is not None)
        seen = cell.fingerprint != UNSEEN
        point = Point(
            **entry.model_dump(exclude={"layers", "settings"}),
            layers=layers,
            settings=settings if ready else entry.settings,
            ridge=_ridge_of(method) if ready or tuning is None else None,
            tuned=tuning is not None,
            accumulate=_accumulates(method),
            capacity=capacity,
            cell=cell.id if ready and seen else None,
            refused=refused,
        )
        shared = self._shared(entry, method, schedule) if refused is None else ""
        return PlannedPoint(
            point, cell if ready else None, tuning if refused is None else None, shared
        )

    def _shared(self, entry: GridEntry, method: Method[Any, Any, Any], schedule: Schedule) -> str:
        """Warn of facts with one key, as far as their texts tell."""
        groups = self.facts.shared_heads(entry.n, entry.seed, entry.order, "head")
        if not groups:
            return ""
        picked = self.facts.pick(
            n=entry.n, seed=entry.seed, order=entry.order, score=1, split="head"
        )
        shared = clashes(method, [case.edit for case in picked.cases], schedule, groups)
        return explained(method, shared) if shared else ""

    def _ridge(self, tuning: Tuning) -> float | None:
        middle = tuning.ridges[len(tuning.ridges) // 2] if self.guess else None
        return self.ridges.get(tuning.name, middle)

    def _cell(
        self, entry: GridEntry, settings: Mapping[str, Any], schedule: str, **changes: Any
    ) -> tuple[Cell, Method[Any, Any, Any]]:
        """The cell and the method of an entry with some settings."""
        refresh = str(Refresh.parse(entry.refresh))
        recipe = resolve(
            outline_of(entry.model), method=entry.method, layers=entry.layers, settings=settings
        )
        kept = {"dtype", "n", "seed", "order", "when", "score", "generation", "metrics"}
        read = None if entry.general is None else self.general[entry.general].identity
        values: dict[str, Any] = {**entry.model_dump(include=kept), "general": read, **changes}
        cell = Cell(
            **values,
            settings=recipe.settings,
            editor=_identity(recipe.build()),
            name=entry.model,
            method=recipe.name,
            fingerprint=self.models[entry.model, entry.dtype].fingerprint,
            layers=recipe.layers,
            data=self.facts.about.sha256,
            unique_subjects=self.facts.about.unique_subjects,
            data_options=self.facts.about.options,
            edits_again=self.facts.edits_again(
                n=values["n"], seed=values["seed"], split=values.get("split", "head")
            ),
            schedule=schedule,
            refresh=refresh,
        )
        return canonical(cell), recipe.build()

    def _tuning(self, entry: GridEntry, ridges: tuple[float, ...]) -> Tuning:
        """The cells by which an entry's ridge is chosen: carried ones where its facts are."""
        tune = self.spec.tuning
        assert tune is not None
        count = min(tune.score, tune.n) or tune.n
        self._check_scored(entry, tune.n, count)
        carried = carries(entry.schedule) and self.rule == RULE
        size = min(entry.batch_size, tune.n)
        written = {
            "batch_size": size,
            "schedule": entry.schedule if carried else "batch",
            "refresh": entry.refresh if carried else "each-batch",
        }
        tuned = entry.model_copy(update=written)
        rest = {k: v for k, v in entry.settings.items() if k != "ridge"}
        cells = [
            self._cell(
                tuned,
                {**rest, "ridge": ridge},
                str(schedule_of(tuned)),
                n=tune.n,
                score=count,
                # Those that are scored are not to be the ones that are written first.
                order=int(carried and count < tune.n),
                split="tail",
                when=("final" if carried else "immediate",),
                generation=False,
                general=None,
                metrics=(),
            )[0]
            for ridge in ridges
        ]
        whom = tuned.model_dump(mode="json", include=set(WHOM))
        whom |= {"layers": list(cells[0].layers), "settings": rest}
        return Tuning(whom, ridges, tuple(cells))

    def _check_scored(self, entry: GridEntry, n: int, score: int) -> None:
        """Refuse facts that have no S."""
        picked = self.facts.pick(n=n, seed=entry.seed, order=0, score=score, split="tail")
        wanted = set(picked.scored)
        cases = [c for c in picked.cases if c.edit.id in wanted and c.edit.target_old is not None]
        if not any(c.paraphrases for c in cases) or not any(c.neighbours for c in cases):
            raise InvalidStudy(no_score(self.facts.about.cases))


def canonical(cell: Cell) -> Cell:
    """The one cell of all that give the same rows."""
    alone, entry = cell.alone(), find_method(cell.method)
    method = entry.build(cell.layers, cell.settings)
    if alone is None or not isinstance(method, Alone):
        return alone or cell
    alike = method.settings_alone(edits_again=cell.edits_again)
    settings = {**cell.settings, **{k: v for k, v in alike.items() if k in cell.settings}}
    before, after = _identity(method), _identity(entry.build(cell.layers, settings))
    # What else the cell says of its method stays: it may be of an earlier Retcon.
    kept = {k: v for k, v in cell.editor.items() if k in after or k not in before}
    changed = {k: v for k, v in after.items() if k in alike or before.get(k) != v}
    return alone.model_copy(update={"settings": settings, "editor": {**kept, **changed}})


def _identity(method: Method[Any, Any, Any]) -> dict[str, Any]:
    """A method's part of a cell's identity, as JSON gives it back."""
    return json.loads(json.dumps(identity(method)))


def _refusal(
    method: Method[Any, Any, Any], entry: GridEntry, schedule: Schedule, capacity: int
) -> str | None:
    """Why hard constraints do not fit, where they do not."""
    together = entry.n if schedule.carry and _accumulates(method) else entry.batch_size
    if _ridge_of(method) != 0 or together <= capacity:
        return None
    return (
        f"{together} facts as hard constraints (ridge 0) do not fit into a matrix with d_in = "
        f"{capacity}"
    )


def _ridge_of(method: Method[Any, Any, Any]) -> float | None:
    """ρ; None of methods without."""
    return method.ridge if isinstance(method, Regularised) else None


def _accumulates(method: Method[Any, Any, Any]) -> bool:
    """True if later batches know earlier ones."""
    return isinstance(method, Accumulates) and method.accumulate


def schedule_of(entry: GridEntry) -> Schedule:
    """Schedule of a place of the grid."""
    alone = entry.schedule in ("single", "sequential")
    return Schedule.parse(entry.schedule if alone else f"{entry.schedule}:{entry.batch_size}")


def _every_layer(entry: GridEntry) -> list[GridEntry]:
    """An entry, or one for each layer of its model that can be edited."""
    if entry.layers is not None:
        return [entry]
    sites = sorted(outline_of(entry.model).architecture.sites)
    return [entry.model_copy(update={"layers": (layer,)}) for layer in sites]


def _model(entry: GridEntry, fingerprint: str) -> Model:
    find_dtype(entry.dtype)
    structure = outline_of(entry.model)
    site = next(iter(structure.architecture.sites.values()))
    return Model(
        name=entry.model,
        dtype=entry.dtype,
        fingerprint=fingerprint,
        d_in=site.d_in,
        blocks=structure.layers,
    )


@cache
def outline_of(name: str) -> Outline:
    """The structure of a model, found once."""
    return outline(name)
