"""The golden record: what the code gave when it was made, up to what processors differ by.

The record is made anew, where a change is meant, by `python -m golden.record` in `tests`, which
also tells bytes from rounding (`--compare`).
"""

import copy
import json

import jaxtyping
import pytest

from golden.record import COMMITTED, STUDY, difference, read, record_of
from golden.runs import Workshop
from golden.scenarios import pico_scenarios, real_scenarios
from retcon.method.entries import methods
from retcon.run.guard import ACTIONS

RECORD = read(COMMITTED)
# Elements of ΔW in units of their mean size, nats, and numbers of batches. Without the vector
# instructions of a processor the largest differences were 3e-5, 8e-5 and 4e-6.
USUAL = (5e-4, 5e-4, 5e-5)
# Steps that are rounded to 8 bits, or of which the largest elements are kept, make much of little:
# 1e-3, 1e-2 and 5e-4.
COARSE = (5e-2, 5e-2, 5e-3)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("golden"))


@pytest.fixture(autouse=True)
def remembered(workshop, cache, monkeypatch):
    """One cache for all, so that a patch starts from the targets of the trial before it.

    Shapes are not looked at here, which would take as long as the runs: other tests do.
    """
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setenv("RETCON_CACHE", str(workshop.folder / "cache"))
    monkeypatch.delenv("RETCON_CACHE_LIMIT")


def check(name, run):
    """Hold a run against the record."""
    apart = difference(RECORD[name], record_of(run))
    patch, nats, numbers = COARSE if "=bfloat16" in name or "=rect" in name else USUAL
    assert not apart.other
    assert apart.patch <= patch and apart.nats <= nats and apart.numbers <= numbers
    # Of tokens that are as probable as others one may be another.
    assert apart.said <= 1


@pytest.mark.parametrize("scenario", pico_scenarios(), ids=lambda scenario: scenario.name)
def test_a_run_gives_what_it_gave(scenario, workshop):
    check(scenario.name, workshop.run(scenario))


def test_a_study_gives_what_it_gave(workshop):
    check(STUDY, workshop.run_study())


@pytest.mark.real
@pytest.mark.parametrize("scenario", real_scenarios()[:3], ids=lambda scenario: scenario.name)
def test_smollm2_gives_what_it_gave(scenario, smollm2, workshop):
    check(scenario.name, workshop.run(scenario, smollm2))


def test_all_there_is_is_recorded():
    scenarios = [*pico_scenarios(), *real_scenarios()]
    assert set(RECORD) == {STUDY, *(scenario.name for scenario in scenarios)}
    assert {scenario.method for scenario in scenarios} == set(methods())
    assert {scenario.guard for scenario in scenarios} == set(ACTIONS)
    assert {scenario.schedule.partition(":")[0] for scenario in scenarios} == {
        "single", "batch", "sequential", "sequential-batch", "adaptive-aimd", "adaptive-energy"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("nlls", lambda nlls: [nlls[0] + 0.01, *nlls[1:]], "nats"),
        ("numbers", lambda numbers: [*numbers[:-1], numbers[-1] * 1.01], "numbers"),
        ("batches", lambda batches: batches[:-1], "other"),
        ("asked", lambda asked: asked[::-1], "other"),
        ("said", lambda said: said.translate({ord("0"): "1"}), "said"),
        ("layers", lambda layers: {k: {**v, "norm": 1.01 * v["norm"]} for k, v in layers.items()},
         "patch"),
    ],
)  # fmt: skip
def test_what_is_not_the_same_is_told(key, value, what):
    old = RECORD["memit sequential-batch:2"]
    new = copy.deepcopy(old)
    assert difference(old, json.loads(json.dumps(new))).bytes
    new[key] = value(old[key])
    assert getattr(difference(old, new), what)
