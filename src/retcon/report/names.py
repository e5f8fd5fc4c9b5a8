"""What kinds of carried edits are called: the same in every chart and table."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from retcon.report.arms import WORDS, Arm, Setting, varying

# What goes without saying.
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "rule": ("",), "accumulate": (True, None), "refresh": ("each-batch", None), "order": (0,),
    "ridge": ("tuned", "none"),
}  # fmt: skip
PLAIN = "Unless named: past keys kept, targets refreshed, order 0, λ tuned where there is one."


def carried_names(arms: Sequence[Arm]) -> dict[Setting, str]:
    """Settings in words: method, batch size, and what is not `PLAIN`, or not as with most."""
    fields = dict.fromkeys(("method", *varying(arms, "score", "others")))
    usual = {
        name: Counter(getattr(arm.setting, name) for arm in arms).most_common(1)[0][0]
        for name in fields
        if arms
    }
    common = Counter(pair for arm in arms for pair in _others(arm.setting))

    def told(setting: Setting) -> Iterator[str]:
        for name in fields:
            plain = getattr(setting, name) in _PLAIN.get(name, (usual[name],))
            if name in ("method", "batch_size") or not plain:
                yield WORDS[name](setting)
        rare = (pair for pair in _others(setting) if common[pair] <= len(arms) / 2)
        yield from (f"{name} {value}" for name, value in rare)

    return {arm.setting: ", ".join(told(arm.setting)) for arm in arms}


def _others(setting: Setting) -> list[tuple[str, str]]:
    """Further settings, and what they are."""
    found = json.loads(setting.others)
    return [(name, json.dumps(value).strip('"')) for name, value in found.items()]
