"""What may be said about a run in words: only what its configuration, its results and its shard sets bear out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cclm.config import RunConfig, named_sets
from cclm.report.facts import MEASURED_ON, TRAINED_ON, RunFacts
from cclm.types import View

GROUP_TITLES = {
    "english": "English",
    "parallel_non_latin": "Parallel text only, non-Latin scripts",
    "parallel_latin": "Parallel text only, Latin script",
    "control": "Neither images nor parallel text (control)",
}
"""Names for the demonstration's groups; another group shows its own."""

ABLATION_TITLES = {
    "parallel_non_latin": "Non-Latin scripts (no parallel text in this run)",
    "parallel_latin": "Latin script (no parallel text in this run)",
    "control": "Other languages (no parallel text in this run)",
}
"""The same groups for a run that was trained without parallel text."""

RERANK_TITLES = {"match_plus_similarity": "match + similarity", "match_alone": "match alone, as published"}
"""Names for the rules in results.json that nothing chose."""


def start_words(config: RunConfig) -> str:
    """Return what the weights started from, to stand behind "trained"."""
    sources = config.start.sources
    if not sources:
        return "from scratch"
    return "from the weights of " + ", ".join(Path(source).name for source in sources)


def learned_from(facts: RunFacts) -> str:
    """Return what the run's own data were, as the end of a sentence; nothing if its configuration does not say."""
    has_images, has_pairs = facts.trains_on(View.IMAGE_TEXT), facts.trains_on(View.TEXT_PAIR)
    if has_images and has_pairs:
        return ": the same encoders and losses for images with captions and for sentences with translations"
    if has_images:
        return ", on images with captions alone (no parallel text)"
    return ", on sentences with translations alone (no images)" if has_pairs else ""


def trained_on_test_images(facts: RunFacts) -> bool | None:
    """Return whether the run read shards of the set that it was measured on: the same folder, or a tar with the same
    bytes. False: all sets are at hand and share no tar. None: not known."""
    measured = (facts.results.get("set") or {}).get("shards")
    if measured is None:
        return None
    folders = [one.path for one in named_sets(facts.config.views) if one.holds is View.IMAGE_TEXT]
    if Path(measured).resolve() in [Path(folder).resolve() for folder in folders]:
        return True
    tests = [one.tar_hashes for one in facts.sets if one.role == MEASURED_ON]
    trained = [one.tar_hashes for one in facts.sets if one.role == TRAINED_ON and one.view is View.IMAGE_TEXT]
    if any(test & other for test in tests for other in trained):
        return True
    is_whole = len(tests) == 1 and len(trained) == len(folders) and all(tests + trained)
    return False if is_whole else None


def retrieval_title(facts: RunFacts) -> str:
    """Return the heading of the recall table."""
    titles = {True: "Retrieval among training images", False: "Zero-shot retrieval", None: "Retrieval"}
    return titles[trained_on_test_images(facts)]


def measured_words(facts: RunFacts, num_languages: int) -> str:
    """Return the sentence that says on what the run was measured."""
    spelled = f"{num_languages} languages" if num_languages > 1 else "one language"
    seen = trained_on_test_images(facts)
    if seen is None:
        return f"Measured in {spelled}; whether it was trained on these images is not known here."
    if seen:
        return f"Measured on images that it was trained on, in {spelled}."
    return f"Measured zero-shot on another set of images than it was trained on, in {spelled}."


def group_title(facts: RunFacts, name: str) -> str:
    """Return a group's name for people; the demonstration's names only where the run's data do not belie them."""
    plain = name.replace("_", " ")
    members = set((facts.results.get("members") or {}).get(name, ()))
    if name != "english" and members & facts.languages_of(View.IMAGE_TEXT):
        return plain
    if name == "control" and members & facts.languages_of(View.TEXT_PAIR):
        return plain
    titles = {**GROUP_TITLES, **({} if facts.trains_on(View.TEXT_PAIR) else ABLATION_TITLES)}
    return titles.get(name, plain)


def negatives_words(config: RunConfig) -> str:
    """Return how hard the wrong pairs of the matching losses are in training."""
    hardness, start = config.objectives.hardness, config.objectives.hardness_start_step
    full = config.objectives.hardness_full_step
    if hardness == 0:
        return "uniform negatives"
    if not full:
        return f"negatives of hardness {hardness:g}"
    return f"negatives of hardness 0, from step {start:,} to {full:,} rising to {hardness:g}"


def rerank_orders(results: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (title, part of results.json) of every re-ranking that changes an order, the chosen one first."""
    found = []
    chosen = results.get("reranked")
    if chosen and chosen["rule"]["match_weight"]:
        found.append(("re-ranked", chosen))
    for name, order in (results.get("reranked_not_chosen") or {}).items():
        found.append((f"not chosen: {RERANK_TITLES.get(name, name)}", order))
    return found


def rerank_words(results: Mapping[str, Any]) -> str:
    """Return how the re-ranked numbers came about; nothing without them."""
    chosen = results.get("reranked")
    if not chosen:
        return ""
    rule = chosen["rule"]
    begin = f"The fusion encoder looks at the {chosen['top_k']} best pairs of each query"
    score = f"{rule['match_weight']:g} · log-odds of a match + {rule['similarity_weight']:g} · cosine / temperature"
    if not rule["match_weight"]:
        text = f"{begin}, but the dev set gave its score the weight 0: the dual encoder's order stands."
    elif "dev" in results:
        text = f"Re-ranked: {begin[0].lower()}{begin[1:]}; score = {score}, weights chosen on the dev set."
    else:
        text = f"Re-ranked: {begin[0].lower()}{begin[1:]}; score = {score}, no weights chosen."
    if results.get("reranked_not_chosen"):
        text += " “Not chosen” is what fixed rules would have given."
    return text
