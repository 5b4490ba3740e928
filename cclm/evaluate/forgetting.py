"""What fine-tuning cost: the same metric on the same rows before and after it, language by language.

    stores ─ results_in ─▶ before, after ─ changes ─▶ [Change] ─ render_changes ─▶ text

A model that is fine-tuned in one language gains there, and loses in others; an average over all of them hides it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from cclm.errors import ConfigError
from cclm.evaluate.benchmark_table import (
    ENGLISH,
    Choice,
    Found,
    RowKey,
    cells_of,
    comparisons_with,
    groups_of,
    tables_in,
)
from cclm.evaluate.published import AVERAGE
from cclm.evaluate.scores import METRICS
from cclm.evaluate.significance import Comparison, Spread
from cclm.files.text import FORMATS

HEAD: Final = ("language", "before", "after", "change", "95 % interval", "p")
_OTHER_MODEL: Final = ("model", "protocol", "shots", "selected_on")
"""What may differ between before and after; all else must agree."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One model before and after."""

    title: str
    before: Mapping[str, Spread]
    """By language that both were measured in, and "avg", over these but English."""
    after: Mapping[str, Spread]
    comparisons: Mapping[str, Comparison]
    """After minus before, by the same."""


def changes(before: Sequence[Found], after: Sequence[Found], metric: str = "") -> list[Change]:
    """Compare each model of `after` with the one of `before`, on each task, split and metric that both have.

    `metric`: only this one; without it the first of single rows (t2i_r1, accuracy, …) of each task and split.

    Raises:
        ConfigError: they share none, `before` holds several models, or predictions are missing.
    """
    shared = [one for one in tables_in(after) if one in tables_in(before) and one.metric in METRICS]
    chosen = [one for one in shared if one.metric == metric] if metric else _firsts(shared)
    if not chosen:
        got = ", ".join(f"{one.task} {one.split} {one.metric}" for one in shared) or "no metric of single rows in both"
        expected = f"results {f'in {metric} ' if metric else ''}on the same task and split, before and after"
        raise ConfigError(expected=expected, got=got, do="Measure both on the same test sets.")
    return [
        _change(choice, groups_of(before, choice), key, of_one)
        for choice in chosen
        for key, of_one in groups_of(after, choice).items()
    ]


def _firsts(choices: Sequence[Choice]) -> list[Choice]:
    found = dict[tuple[str, str], Choice]()
    for choice in choices:
        found.setdefault((choice.task, choice.split), choice)
    return list(found.values())


def _change(choice: Choice, before: Mapping[RowKey, Sequence[Found]], key: RowKey, after: Sequence[Found]) -> Change:
    fitting = [one for one in before if one._replace(**{name: getattr(key, name) for name in _OTHER_MODEL}) == key]
    where = f"{choice.task} {choice.split} {choice.metric}, {key.model} ({key.protocol})"
    if len(fitting) != 1:
        got = ", ".join(f"{one.model} ({one.protocol})" for one in fitting) or "none"
        do = "Name folders with one model that was measured in the same way."
        raise ConfigError(where=where, expected="one model before fine-tuning", got=got, do=do)
    (old,) = fitting
    shared = {one.language for _, one in before[old]} & {one.language for _, one in after}
    if not shared:
        got = " and ".join(", ".join(sorted({one.language for _, one in of})) for of in (before[old], after))
        do = "Measure both on the same test sets, or name other runs."
        raise ConfigError(where=where, expected="a language in which both were measured", got=got, do=do)
    was, became = ([one for one in of if one[1].language in shared] for of in (before[old], after))
    ways = f", re-ranked {key.reranked}" if key.reranked else ""
    return Change(
        title=f"{choice.task}, {choice.split}, {choice.metric} in %{ways}: {key.model} ({key.protocol}"
        f"{f' {key.shots}' if key.shots else ''}) after {old.model} ({old.protocol})",
        before=cells_of([result for _, result in was]),
        after=cells_of([result for _, result in became]),
        comparisons=comparisons_with(was, became),
    )


def render_changes(found: Sequence[Change], kind: str) -> str:
    """Return changes as text: "json", or a format of `cclm.files.text`."""
    if kind == "json":
        return json.dumps([asdict(change) for change in found], ensure_ascii=False, indent=1)
    return "\n\n".join(FORMATS[kind](HEAD, _rows(change), change.title) for change in found)


def _rows(change: Change) -> list[list[str]]:
    names = sorted(change.comparisons, key=lambda name: (name == AVERAGE, name != ENGLISH, name))
    rows = []
    for name in names:
        one = change.comparisons[name]
        mark = " *" if one.is_significant else ""
        interval, p_value = f"[{one.low:+.2f}, {one.high:+.2f}]", f"{one.p_bootstrap:.4f}"
        before, after = str(change.before[name]), str(change.after[name])
        rows.append([name, before, after, f"{one.difference:+.2f}{mark}", interval, p_value])
    return rows
