"""MQuAKE-Remastered: MQuAKE with its faulty records mended (Zhong et al., ICLR 2025).

Its records are MQuAKE's, in one of two shapes that its own code reads
(https://github.com/henryzhongsc/MQuAKE-Remastered): nested as in MQuAKE's files, with the key
`6334_split`; or, in the set of that name on the Hugging Face hub, with `split`, and flat: a
rewrite's answers are `target_new_str` and `target_true_str`, hops `new_triples` and
`new_triples_labeled`. A file with neither key cannot be told from MQuAKE, and is read as such.

The split says which records are edited in each of the published runs. It is not read: all records
of a file are written. The published evaluation hides from a question the edits that contradict its
hops. Weights hold all edits at once, so such questions are left out here; a warning counts them.
"""

import warnings
from collections.abc import Sequence

from pydantic import model_validator

from retcon.data.sets import Place, dataset
from retcon.data.sets.mquake import SPLITS, Mquake, contradicted, facts_of
from retcon.edits import Case
from retcon.errors import RetconWarning

_HOPS = ("new_triples", "new_triples_labeled")
_ANSWERS = ("target_new", "target_true")


class MquakeRemastered(Mquake):
    """A record in either shape."""

    ignored = Mquake.ignored | SPLITS | {"orig_triples", "orig_triples_labeled", "edit_triples"}

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, record: object) -> object:
        """A flat record as MQuAKE has it."""
        if not isinstance(record, dict) or not isinstance(record.get("requested_rewrite"), list):
            return record
        nested = {**record, "requested_rewrite": list(map(_answers, record["requested_rewrite"]))}
        if all(name in record for name in _HOPS):
            nested["orig"] = {name: nested.pop(name) for name in _HOPS}
        return nested


def _answers(fact: object) -> object:
    """A rewrite whose answers are not flat."""
    if not isinstance(fact, dict):
        return fact
    flat = {f"{name}_{part}" for name in _ANSWERS for part in ("str", "id")}
    known = {name: {"str": fact[f"{name}_str"]} for name in _ANSWERS if f"{name}_str" in fact}
    return {key: value for key, value in fact.items() if key not in flat} | known


def remastered_cases(records: Sequence[MquakeRemastered]) -> list[Case]:
    """The distinct facts of all records, without the questions that an edit contradicts.

    Raises:
        InvalidEdit: no edit can be made of one.
    """
    silent = contradicted(records)
    if any(silent):
        warnings.warn(
            f"The questions of {sum(silent):,} of {len(records):,} records are left out: an edit "
            f"of the same file gives one of their hops another answer, and a model that holds all "
            f"edits cannot give both.",
            RetconWarning,
            stacklevel=4,
        )
    return facts_of(records, silent)


@dataset(
    "mquake-remastered",
    record=MquakeRemastered,
    recognises=lambda said: (
        isinstance(said.get("requested_rewrite"), list) and not SPLITS.isdisjoint(said)
    ),
    together=remastered_cases,
)
def mquake_remastered(record: MquakeRemastered, place: Place) -> list[Case]:
    """The facts of a record, by themselves."""
    del place
    return facts_of([record])
