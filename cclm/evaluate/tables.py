"""Measurements as results: the dictionary of `results.json` and the table of the terminal.

Groups of languages are a literal dictionary, group → languages; a group's number is the mean over its languages.
Every number stands beside its chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from cclm.evaluate.matching import PRIOR
from cclm.evaluate.rerank import FIXED_RULES, RerankRule
from cclm.evaluate.retrieval import Recall, clustered_standard_error, mean_recall, recall_standard_error
from cclm.evaluate.scores import DIRECTIONS, RECALL_CUTS
from cclm.evaluate.zero_shot import Measurement

NOT_CHOSEN_TITLES = {"match_plus_similarity": "match + sim", "match_alone": "match alone"}
"""Names of `FIXED_RULES` that fit into the table."""
Groups = Mapping[str, Sequence[str]]
Results = dict[str, Any]


def results_of(measurement: Measurement, groups: Groups, rule: RerankRule | None = None) -> Results:
    """Return what `results.json` holds of one set, in percent, rounded to 0.01.

    `chance`, `groups` and `languages` have the keys direction → r1, r5, r10 below (group or language first);
    `standard_error` has them too, in points, for the groups and the languages. With a `rule`, `reranked` repeats
    `groups` and `languages` after re-ranking by it, and `reranked_not_chosen` by each other rule of `FIXED_RULES`: a
    rule of weight 0 says nothing about the fusion encoder. `matching` holds the matching head's accuracy and loss by
    language.
    """
    results: Results = {
        "chance": _chance(measurement),
        "members": {name: list(members) for name, members in groups.items()},
        **_recalls(measurement, groups, None),
        "standard_error": {
            "groups": {name: _group_errors(measurement, members) for name, members in groups.items()},
            "languages": _language_errors(measurement),
        },
    }
    if rule is not None:
        results["reranked"] = _reranked(measurement, groups, rule)
        results["reranked_not_chosen"] = {
            name: _reranked(measurement, groups, fixed) for name, fixed in FIXED_RULES.items() if fixed != rule
        }
    if measurement.matching:
        results["matching"] = {
            "prior": {"accuracy": round(PRIOR.accuracy, 2), "loss": round(PRIOR.loss, 5)},
            "languages": {
                language: {kind: _rounded(vars(score), 4) for kind, score in scores.items()}
                for language, scores in measurement.matching.items()
            },
        }
    return results


def _reranked(measurement: Measurement, groups: Groups, rule: RerankRule) -> Results:
    return {"top_k": measurement.top_k, "rule": asdict(rule), **_recalls(measurement, groups, rule)}


def _recalls(measurement: Measurement, groups: Groups, rule: RerankRule | None) -> Results:
    """Return the recalls of the groups and of the languages, which are groups of one."""
    kinds: Mapping[str, Groups] = {"groups": groups, "languages": {name: [name] for name in measurement.languages}}
    return {
        kind: {
            name: {way: _rounded(measurement.group_recall(members, way, rule), 2) for way in DIRECTIONS}
            for name, members in of_kind.items()
        }
        for kind, of_kind in kinds.items()
    }


def _chance(measurement: Measurement) -> Results:
    of_languages = [result.chance_by_direction for result in measurement.languages.values()]
    return {way: _rounded(mean_recall([chance[way] for chance in of_languages]), 3) for way in DIRECTIONS}


def _language_errors(measurement: Measurement) -> Results:
    return {
        language: {
            way: {
                name: round(recall_standard_error(value, len(result.rank_by_direction[way])), 2)
                for name, value in result.recall(way).items()
            }
            for way in DIRECTIONS
        }
        for language, result in measurement.languages.items()
    }


def _group_errors(measurement: Measurement, members: Sequence[str]) -> Results:
    errors: Results = {}
    for way in DIRECTIONS:
        rank = torch.cat([measurement.languages[language].rank_by_direction[way] for language in members])
        image = torch.cat([measurement.languages[language].image_by_direction[way] for language in members])
        errors[way] = {f"r{k}": round(clustered_standard_error(rank < k, image), 2) for k in RECALL_CUTS}
    return errors


def _rounded(values: Mapping[str, float], digits: int) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}


def text_table(results: Results) -> str:
    """Return the results as lines for a terminal, chance in brackets beside each number."""
    chance = results["chance"]
    heading = f"{'':<26}{'text → image  R@1 / 5 / 10':<45}{'image → text  R@1 / 5 / 10':<45}"
    lines = [heading.rstrip(), "─" * 113]
    orders = _orders(results)
    for kind in ("groups", "languages"):
        for name, row in results[kind].items():
            lines.append(f"{name:<26}{_cells(row, chance)}")
            if kind == "groups":
                lines += [f"{f'  {title}':<26}{_cells(order[kind][name], chance)}" for title, order in orders]
        lines.append("─" * 113)
    lines.append("in percent; chance in brackets; ties count against the model")
    for title, order in orders:
        lines += _language_lines(title, order)
    lines += _matching_lines(results)
    return "\n".join(lines)


def _orders(results: Results) -> list[tuple[str, Results]]:
    """Return (title, results) of what re-ranking gave, by the chosen rule and by those that nothing chose."""
    found = []
    if "reranked" in results:
        rule = results["reranked"]["rule"]
        weight = f"weight {rule['match_weight']:g}" if rule["similarity_weight"] else "match alone"
        found.append((f"re-ranked ({weight})", results["reranked"]))
    others = results.get("reranked_not_chosen", {})
    return found + [(f"not chosen: {NOT_CHOSEN_TITLES[name]}", order) for name, order in others.items()]


def _language_lines(title: str, order: Results) -> list[str]:
    """Return R@1 by language; nothing for a rule that leaves the dual encoder's order."""
    if not order["rule"]["match_weight"]:
        return []
    cells = [
        f"{language} {row['t2i']['r1']:.1f}/{row['i2t']['r1']:.1f}" for language, row in order["languages"].items()
    ]
    lines = [f"R@1 text → image / image → text by language, {title}:"]
    return lines + [
        "  " + "  ".join(f"{cell:<13}" for cell in cells[n : n + 7]).rstrip() for n in range(0, len(cells), 7)
    ]


def _cells(row: Mapping[str, Mapping[str, float]], chance: Mapping[str, Recall]) -> str:
    cells = []
    for way in DIRECTIONS:
        numbers = (f"{row[way][name]:5.1f} {f'({chance[way][name]:.2f})':<8}" for name in row[way])
        cells.append(f"{''.join(numbers):<45}")
    return "".join(cells).rstrip()


def _matching_lines(results: Results) -> list[str]:
    if "matching" not in results:
        return []
    prior = results["matching"]["prior"]
    return [
        f"matching head, {language}, {kind} wrong pairs: accuracy {score['accuracy']:.1f} % "
        f"(prior {prior['accuracy']:.1f} %), loss {score['loss']:.3f} (prior {prior['loss']:.3f})"
        for language, scores in results["matching"]["languages"].items()
        for kind, score in scores.items()
    ]
