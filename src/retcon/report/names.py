"""What kinds of carried edits are called: the same in every chart and table."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from retcon.report.arms import WORDS, Arm, Setting, varying
from retcon.study.points import Order

# What goes without saying.
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "rule": ("",), "accumulate": (True, None), "refresh": ("each-batch", None),
    "ridge": ("tuned", "none"),
}  # fmt: skip
PLAIN = "Unless named: past keys kept, targets refreshed, first order, λ tuned where there is one."


def carried_names(arms: Sequence[Arm]) -> dict[Setting, str]:
    """Settings in words: method, batch size, and what is not `PLAIN`, or not as with most."""
    fields = dict.fromkeys(("method", *varying(arms, "score", "others")))
    usual = {
        name: Counter(getattr(arm.setting, name) for arm in arms).most_common(1)[0][0]
        for name in fields
        if arms
    }
    common = Counter(pair for arm in arms for pair in _others(arm.setting))
    orders = defaultdict[tuple[object, ...], list[Order]](list)
    for arm in arms:
        orders[arm.setting.but("order")].append(arm.setting.order)

    def plain(name: str, setting: Setting) -> bool:
        if name == "order":  # a name for the first of several orders would tell nothing
            return setting.order == min(orders[setting.but("order")], key=str)
        return getattr(setting, name) in _PLAIN.get(name, (usual[name],))

    def told(setting: Setting) -> Iterator[str]:
        for name in fields:
            if name in ("method", "batch_size") or not plain(name, setting):
                yield WORDS[name](setting)
        rare = (pair for pair in _others(setting) if common[pair] <= len(arms) / 2)
        yield from (f"{name} {value}" for name, value in rare)

    return {arm.setting: ", ".join(told(arm.setting)) for arm in arms}


def _others(setting: Setting) -> list[tuple[str, str]]:
    """Further settings, and what they are."""
    found = json.loads(setting.others)
    return [(name, json.dumps(value).strip('"')) for name, value in found.items()]
