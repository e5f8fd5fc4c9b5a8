"""Streams in which facts are edited again: whom one asks, and what for."""

from collections import defaultdict
from dataclasses import replace

import pytest

from pico import pico
from retcon.edits import Case, Edit
from retcon.method.entries import find_method
from retcon.run.looks import Looks
from retcon.run.looks import run as watch
from retcon.run.monitor import Monitor
from retcon.run.schedule import Schedule

FAST = {"steps": 4, "corpus_tokens": 300, "document_tokens": 32, "jitter": 1e-3, "prefixes": 1}
EDITS = [
    Edit(id=name, prompt="The mother tongue of {} is", subject=name, target="English")
    for name in ("Marie Curie", "Rome", "Danielle", "Paris")
]
AGAIN = replace(EDITS[0], id="again", target="Polish")


def asked(schedule, edits):
    """Which cases are scored when, and after which batch."""
    model, editor = pico(), find_method("memit").build((1,), {**FAST, "ridge": 5.0})
    cases, seen = [Case(edit=edit) for edit in edits], defaultdict(set)
    looks = Looks(when=("immediate", "retention", "final"))
    plan = Schedule.parse(schedule)
    for one in watch(model, editor, editor.setup.begin(model), cases, plan, looks=looks):
        for row in one.rows:
            seen[row.when, row.step].add(row.case)
    return dict(seen)


def test_what_a_fact_said_before_it_was_edited_again_is_not_asked_for(entries):
    ids = [edit.id for edit in EDITS]
    seen = asked("sequential-batch:1", [*EDITS, AGAIN])
    assert seen["immediate", 1] == {ids[0]} and seen["immediate", 5] == {"again"}
    assert seen["retention", 2] == {ids[0]} and seen["retention", 4] == set(ids[:3])
    assert seen["final", 5] == {*ids[1:], "again"}
    early = asked("sequential-batch:1", [EDITS[0], AGAIN, *EDITS[1:]])
    assert ("retention", 2) not in early
    assert early["retention", 4] == {"again", ids[1]}


@pytest.mark.parametrize("schedule", ["sequential-batch:5", "batch:5"])
def test_nor_of_two_edits_of_a_fact_in_one_batch_the_first(schedule, entries):
    seen = asked(schedule, [*EDITS, AGAIN])
    assert seen["immediate", 1] == {*(edit.id for edit in EDITS[1:]), "again"}
    if schedule.startswith("sequential"):
        assert seen["final", 1] == seen["immediate", 1]


def test_a_probe_asks_for_the_last_target_of_a_batch(entries):
    model = pico()
    both = Monitor(model).measure([EDITS[0], AGAIN, EDITS[1]], [], 0.0)
    assert both == Monitor(model).measure([AGAIN, EDITS[1]], [], 0.0)
    assert both.efficacy in (0.0, 0.5, 1.0)
