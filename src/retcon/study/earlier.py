"""Turn the records of earlier versions of Retcon into the one table of observations.

They had a table of scored prompts, and beside it readings of the model as a whole and a table of
the texts that it wrote. Folders and packs of them are read for good.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retcon.scoring.observations import ITEM, PASSAGE, TEXT, Moment, Observation, schema, table

if TYPE_CHECKING:
    import polars as pl


def observations(
    rows: "pl.DataFrame",
    general: Sequence[Any] = (),
    generations: "pl.DataFrame | None" = None,
    steps: Sequence[Mapping[str, Any]] = (),
) -> "pl.DataFrame":
    """A cell's table of observations.

    Args:
        rows: of the table as it was, or as it is.
        general: readings, each `[when, edits written, [perplexity, abilities]]`.
        generations: texts.
        steps: records of batches, by which the edits written tell how many batches there had been.
    """
    import polars as pl

    columns = schema()
    absent = [pl.lit(None).alias(name) for name in columns if name not in rows.columns]
    parts = [rows.with_columns(absent).select(columns.names()).cast({**columns})]
    if general:
        parts.append(table([row for one in general for row in _of_reading(one, steps)]))
    if generations is not None:
        parts.append(table([*_of_texts(generations)]))
    return pl.concat(parts)


def _of_reading(reading: Any, steps: Sequence[Mapping[str, Any]]) -> list[Observation]:
    when, written, (perplexity, abilities) = reading
    moment = Moment(when, sum(step["at"] <= written for step in steps))
    texts: Sequence[Any] = perplexity[1] if perplexity else []
    passages = [
        Observation(f"passage {i}", None, PASSAGE, i, *moment, nll_new=nll / tokens, n_new=tokens)
        for i, (tokens, nll) in enumerate(texts)
    ]
    return passages + [
        Observation(f"{task} {item}", None, f"{ITEM}:{task}", item, *moment, exact=right)
        for task, _, items, answers in abilities
        for item, right in zip(items, answers, strict=True)
    ]


def _of_texts(texts: "pl.DataFrame") -> Iterator[Observation]:
    names = ("case", "relation", "index", "when", "step", "entropy", "text")
    for case, relation, index, when, step, entropy, text in texts.select(names).iter_rows():
        yield Observation(case, relation, TEXT, index, when, step, value=entropy, text=text)
