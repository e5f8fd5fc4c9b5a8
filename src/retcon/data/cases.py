"""Read files of facts and cases: benchmarks in the form they are published in, or plain facts.

What a file is, its records tell: CounterFact, zsRE, KnowEdit (and the flat records of toolkits),
MQuAKE, MQuAKE-Remastered, RippleEdits, QAEdit, or the plain form, which needs `prompt`, with its
subject in braces, and `target`, and may have `target_old`, `paraphrases`, `neighbours`, `openings`,
`portability`, `locality`, `questions`, `relation` and `id`. Whatever is wrong is reported with its
place, and nothing is left out without a word.
"""

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from retcon.data.parsing import Record, did_you_mean, guarded, parsed, validated
from retcon.data.records import Bad, Placed, records
from retcon.data.sets import Dataset, Place, dataset_of
from retcon.data.sets.plain import PlainFact
from retcon.data.text import read_text
from retcon.edits import Case
from retcon.errors import InvalidData, InvalidSetting, RetconWarning, first_few
from retcon.settings import NONE, Settings
from retcon.toyworld.world import FACTS, toy_cases

# Cases that come with the package, a file each, and those that are made by it.
PACKAGED = ("starter", "everyday")
NAMED = (*PACKAGED, *FACTS)
# How many bad records, and unknown keys, are named.
_SHOWN = 10


class FactFile(NamedTuple):
    """The cases of a file, what was left out of it, and the options that are no defaults."""

    cases: list[Case]
    skipped: tuple[Bad, ...] = ()
    options: Mapping[str, object] = NONE


def load_cases(path: Path | str, *, skip_bad: bool = False, options: Settings = NONE) -> list[Case]:
    """All cases of a file, in its order: a JSON array, or a record a line.

    Either may be gzipped. The names `starter` and `everyday` give the facts that come with the
    package, `toyworld` and `toyworld-small` those of its invented world.

    Args:
        skip_bad: go on without the records of which no case can be made; a `RetconWarning` says
            which.
        options: of the file's data set, by name, as `{"target": "alt"}` of zsRE.

    Raises:
        UnknownName, InvalidSetting: an option that the data set does not have.
        InvalidData: no such file, or something in it is wrong; the message says where.
    """
    return read_facts(path, skip_bad=skip_bad, options=options).cases


def read_facts(
    path: Path | str,
    *,
    skip_bad: bool = False,
    options: Settings = NONE,
    called: str | None = None,
) -> FactFile:
    """Read facts as `load_cases` does, and return the skipped records with them.

    Args:
        skip_bad, options: as of `load_cases`.
        called: the file's name for its readers, where it is not the path.

    Raises:
        InvalidData, UnknownName, InvalidSetting: as `load_cases`.
    """
    name = str(path)
    if name in NAMED:
        if options:
            raise InvalidSetting(f"The facts {name!r} have no options: leave them out.")
        return FactFile(packaged(name) if name in PACKAGED else list(toy_cases(name)))
    source = called or str(path)
    placed = list(records(read_text(Path(path)), source))
    if not placed:
        raise InvalidData(f"{source} holds no facts.")
    form = _form(placed)
    chosen = form.chosen(options)
    read = _distinct([_read(one, form, n, chosen) for n, one in enumerate(placed)])
    good = [one for one in read if isinstance(one, _Good)]
    bad = [one for one in read if isinstance(one, Bad)]
    if bad and not (skip_bad and good):
        raise InvalidData(_refusal(bad, placed, source))
    if bad:
        _warn(f"{_share(bad, len(placed))} of {source} were skipped:{_listed(bad, source)}")
    _tell_unread(good, form, source)
    if form.together is not None:
        return FactFile(form.together([one.valid for one in good]), tuple(bad), chosen)
    return FactFile([case for one in good for case in one.cases], tuple(bad), chosen)


def find_file(name: str, folders: Sequence[Path | str | None]) -> Path | None:
    """A file by its name, in the first folder that has it; None where none has.

    Args:
        name: of the file.
        folders: those that are looked into. All but the last may have a folder for each data set.
    """
    places = [Path(folder) for folder in folders if folder]
    files = [place / name for place in places if (place / name).is_file()]
    files += [path for place in places[:-1] for path in sorted(place.glob(f"*/{name}"))]
    return files[0] if files else None


def starter_cases() -> list[Case]:
    """The starter set: facts that SmolLM2 knows, with counterfactual targets."""
    return packaged("starter")


def packaged(name: str) -> list[Case]:
    """The cases of a file that comes with the package: one of PACKAGED."""
    text = (files("retcon.data") / f"{name}.jsonl").read_text(encoding="utf-8")
    lines = enumerate(text.splitlines(), start=1)
    return [parse_fact(line, number, f"the set {name!r}") for number, line in lines]


def take(cases: Sequence[Case], n: int | None, seed: int) -> list[Case]:
    """The first n cases in the order of sha256("{seed}:{id}"); all, where n is None.

    The order depends on nothing else, so that smaller samples are part of larger ones; only cases
    of one fact take the places that are theirs in the order of the file.

    Raises:
        InvalidData: fewer than n cases.
    """
    if n is not None and not 1 <= n <= len(cases):
        raise InvalidData(
            f"{n} cases were asked for and the file holds {len(cases)}. Take 1 to {len(cases)}."
        )
    return in_order(cases, seeded(seed))[:n]


def seeded(seed: int) -> Callable[[Case], str]:
    """Sort key that puts cases into the order of a seed."""
    return lambda case: hashlib.sha256(f"{seed}:{case.edit.id}".encode()).hexdigest()


def in_order(cases: Sequence[Case], place: Callable[[Case], str]) -> list[Case]:
    """The cases by their places; those of one fact share theirs in the order they come in.

    So which of two edits of a fact comes last, and counts, is for the file to say.
    """
    waiting: defaultdict[str, list[Case]] = defaultdict(list)
    for case in reversed(cases):
        waiting[case.edit.fact].append(case)
    return [waiting[case.edit.fact].pop() for case in sorted(cases, key=place)]


def parse_fact(line: str, number: int = 1, source: str = "the text") -> Case:
    """One line of the plain form.

    Raises:
        InvalidData: not JSON, not the fields above, or not an edit.
    """
    where = f"{source}, line {number}"
    return guarded(where, lambda: validated(PlainFact, parsed(line, where), where).case(number))


class _Good(NamedTuple):
    """A record that is valid, and the cases that it makes by itself."""

    where: str
    valid: Record
    cases: list[Case]


def _form(placed: Sequence[Placed | Bad]) -> Dataset:
    """The data set of a file: that of most of its records."""
    sets = {one.name: one for one in (dataset_of(each.value) for each in _placed(placed))}
    counts = Counter(dataset_of(each.value).name for each in _placed(placed))
    return sets[counts.most_common(1)[0][0]] if counts else dataset_of(None)


def _placed(placed: Sequence[Placed | Bad]) -> list[Placed]:
    return [one for one in placed if isinstance(one, Placed)]


def _read(record: Placed | Bad, form: Dataset, index: int, options: Settings) -> _Good | Bad:
    if isinstance(record, Bad):
        return record
    where, place = record.where, Place(record.number, index)
    try:
        valid = validated(form.record, record.value, where)
        cases = guarded(where, lambda: form.cases(valid, place, **options))
    except InvalidData as error:
        return Bad(where, str(error).removeprefix(f"{where}: "))
    return _Good(where, valid, cases)


def _distinct(read: Sequence[_Good | Bad]) -> list[_Good | Bad]:
    """The records, those with an id that stands there already as bad ones."""
    seen: dict[str, str] = {}
    rows: list[_Good | Bad] = []
    for record in read:
        one = record
        ids = [case.edit.id for case in one.cases] if isinstance(one, _Good) else []
        twice = next((name for name in ids if name in seen), None)
        if twice is not None:
            one = Bad(record.where, f"its id {twice!r} is that of {seen[twice]}.")
        else:
            seen.update(dict.fromkeys(ids, record.where))
        rows.append(one)
    return rows


def _refusal(bad: Sequence[Bad], placed: Sequence[Placed | Bad], source: str) -> str:
    """Why a file is refused, and what to do."""
    single, number = len(bad) == 1, len(placed)
    message = f"{bad[0].where}: {bad[0].why}"
    if not single:
        message = f"{_share(bad, number)} of {source} cannot be used:{_listed(bad, source)}\n"
    if len(bad) < number:
        return (
            f"{message}{f' All other records ({number - 1:,}) are fine. ' if single else ''}Mend "
            f"{'it' if single else 'them'}, or go on without: --skip-bad (in Python skip_bad=True; "
            f"in a study skip_bad: true, under data)."
        )
    if any(isinstance(one, Placed) and _like_a_fact(one.value) for one in placed):
        return message.rstrip()
    return (
        f"{message}{' ' * single}Read are CounterFact, zsRE, KnowEdit, MQuAKE, "
        f"MQuAKE-Remastered, RippleEdits, QAEdit, and plain facts such as "
        f'{{"prompt": "The capital of {{France}} is", "target": "Rome"}}.'
    )


def _like_a_fact(value: object) -> bool:
    form = dataset_of(value)
    return form.name != "plain" or (isinstance(value, dict) and form.recognises(value))


def _share(bad: Sequence[Bad], number: int) -> str:
    return f"{len(bad):,} of {number:,} records"


def _listed(bad: Sequence[Bad], source: str, most: int = _SHOWN) -> str:
    lines = [f"\n  {one.where.removeprefix(f'{source}, ')}: {one.why}" for one in bad[:most]]
    more = [f"\n  … and {len(bad) - most:,} more"] if len(bad) > most else []
    return "".join(lines + more)


def _tell_unread(good: Sequence[_Good], form: Dataset, source: str) -> None:
    """Name the keys that nothing has read."""
    counts = Counter(key for one in good for key in set(one.valid.unread()))
    known = list(form.record.model_fields)
    keys = [f"{k} ({n:,}{_meant(k, known)})" for k, n in counts.most_common()]
    if keys:
        _warn(
            f"{source}, read as {form.record.__name__}: keys that are not known are left out, here "
            f"with the number of records that have them: {first_few(keys, _SHOWN)}."
        )


def _meant(key: str, known: Sequence[str]) -> str:
    near = "" if "." in key else did_you_mean(key, known)
    return near.replace(" Did", "; did", 1)


def _warn(message: str) -> None:
    warnings.warn(message, RetconWarning, stacklevel=4)
