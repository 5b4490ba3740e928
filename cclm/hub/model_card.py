"""The README.md of an exported model: what it is, how to use it, what was measured, what it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cclm.files.reading import to_yaml
from cclm.files.shipped import open_template
from cclm.hub.parity import ParityReport
from cclm.report.claims import group_title, learned_from, rerank_orders, rerank_words, retrieval_title, start_words
from cclm.report.facts import RunFacts
from cclm.types import View

RECIPE_KEYS = ("seed", "model", "views", "data", "objectives", "optimizer", "engine", "deepspeed", "precision")
"""What of a run's configuration decides the weights."""


def model_card(facts: RunFacts, parity: ParityReport, num_parameters: int) -> str:
    """Return the text of README.md, front matter included."""
    recipe = {name: getattr(facts.config, name) for name in RECIPE_KEYS}
    card: str = open_template(Path(__file__).with_name("model_card.md.j2"), html=False).render(
        facts=facts,
        parity=parity,
        num_parameters=num_parameters,
        languages=trained_languages(facts),
        recipe=to_yaml(recipe).strip(),
        commands=[stage.command for stage in facts.stages if stage.command],
        cell=recall_cell,
        title=lambda name: group_title(facts, name),
        learned_from=learned_from(facts),
        has_both=all(map(facts.trains_on, View)),
        start=start_words(facts.config),
        retrieval_title=retrieval_title(facts),
        orders=rerank_orders(facts.results),
        rerank_words=rerank_words(facts.results),
    )
    return card


def trained_languages(facts: RunFacts) -> list[str]:
    """Return the languages of the training sets: all captions that were used, and all pairs."""
    return sorted({language for view in View for language in facts.languages_of(view)})


def recall_cell(row: Mapping[str, Any], digits: int = 1) -> str:
    """Return "25.6 / 52.1 / 63.6"."""
    return " / ".join(f"{row[name]:.{digits}f}" for name in ("r1", "r5", "r10"))
