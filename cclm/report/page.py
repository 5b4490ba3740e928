"""One self-contained HTML page about a run: no script, no outside resource, readable on screen and on paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cclm.config import ALL, RunConfig
from cclm.files.reading import to_yaml
from cclm.files.shipped import open_template
from cclm.report import claims
from cclm.report.facts import RunFacts, read_facts
from cclm.report.svg import BarRow, Series, bar_chart, line_chart
from cclm.run.checkpoints import CheckpointFacts
from cclm.run.progress import SECTIONS, SHARE, slow_ranks
from cclm.track.metrics import read_metrics
from cclm.track.progress import spell_duration
from cclm.views.entry import ViewEntry
from cclm.views.table import VIEWS

LANGUAGE_NAMES = {
    "ar": "Arabic", "bn": "Bengali", "cs": "Czech", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "ms": "Malay", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese",
    "ru": "Russian", "sw": "Swahili", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip
"""Names for the page; another language shows its tag."""

LICENCE_TEXTS = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "MIT": "https://opensource.org/license/mit",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "Unicode-3.0": "https://www.unicode.org/license.txt",
}
"""Where the text of a licence stands, by SPDX tag."""

PRIOR_LOSS, PRIOR_ACCURACY = 0.6365, 2 / 3
"""Two wrong pairs stand beside each right one: what a matching head reaches that ignores its input."""

SLOW_RANKS = {"speed/data_slowest_s": "for data", "speed/late_s": "otherwise"}
"""What the slowest rank costs the others, by step."""
MOST_LANGUAGES = 10
"""Lines of one chart of recalls."""
Lines = Sequence[tuple[int, Mapping[str, float]]]
"""Steps with what was logged."""
Panel = tuple[str, str, Markup]
"""Title, note and SVG of one chart over the steps."""


@dataclass(frozen=True, kw_only=True)
class RecallRow:
    """A language, or a group with its languages: recall in percent, by "t2i" / "i2t" and "r1" / "r5" / "r10"."""

    name: str
    recall: Mapping[str, Mapping[str, float]]
    error: Mapping[str, Mapping[str, float]]
    """Standard errors, in points; the inner mappings may be empty."""
    reranked: Sequence[tuple[str, Mapping[str, Mapping[str, float]]]]
    """(title, recall) by each re-ranking rule; the first is marked in the bars."""
    languages: Sequence[RecallRow] = ()


def report_page(folder: Path, checkpoint: CheckpointFacts | None = None) -> str:
    """Return the page about a run folder (arguments and errors: `read_facts`)."""
    facts = read_facts(folder, checkpoint)
    groups = recall_rows(facts)
    page: str = open_template(Path(__file__).with_name("page.html.j2"), html=True).render(
        facts=facts,
        results=facts.results,
        lead=lead(facts, groups),
        headlines=headlines(facts, groups),
        sections=sections(read_metrics(folder), facts.config),
        groups=groups,
        rerank_note=claims.rerank_words(facts.results),
        rerank_mark=next((title for title, _ in claims.rerank_orders(facts.results)), ""),
        retrieval_title=claims.retrieval_title(facts),
        config_text=to_yaml(facts.config),
        bars=lambda direction: recall_bars(groups, facts.results["chance"][direction], direction),
        language_name=language_name,
        licence_link=licence_link,
        spell_duration=spell_duration,
    )
    return page


def lead(facts: RunFacts, groups: Sequence[RecallRow]) -> str:
    """Return the sentences under the title."""
    steps = f"{facts.steps:,} steps" if facts.steps else "trained"
    begin = f"A cross-view language model, {steps} {claims.start_words(facts.config)}{claims.learned_from(facts)}."
    if not groups:
        return f"{begin} This checkpoint was not measured yet."
    return f"{begin} {claims.measured_words(facts, sum(len(group.languages) for group in groups))}"


def headlines(facts: RunFacts, groups: Sequence[RecallRow]) -> list[tuple[str, str, str]]:
    """Return the large numbers with label and note: recall at 10 of each group, size, and time."""
    found = []
    for group in groups:
        recall = group.recall["t2i"]["r10"]
        times = recall / facts.results["chance"]["t2i"]["r10"]
        found.append((f"{recall:.1f} %", group.name, f"text → image R@10, {times:.0f}\u00a0×\u00a0chance"))
    if parameters := (facts.results.get("model") or {}).get("num_parameters"):
        found.append((f"{parameters / 1e6:.1f} M", "parameters", f"trained {claims.start_words(facts.config)}"))
    if facts.train_seconds:
        found.append((f"{facts.train_seconds / 60:.1f} min", "training", trained_where(facts.environment)))
    return found


def trained_where(environment: Mapping[str, str]) -> str:
    """Return ranks, cores and machine of the training, as far as they are known."""
    ranks, cores, machine = environment.get("ranks", "1"), environment.get("cores"), environment.get("machine")
    spelled = f"{cores} core" if cores == "1" else f"{cores} cores"
    known = [f"{ranks} ranks"] if ranks != "1" else []
    if cores:  # those of one rank, which ranks may have to share
        known.append(f"up to {spelled} each" if known else spelled)
    return ", ".join([*known, *([machine] if machine and machine != "unknown" else [])])


def sections(lines: Lines, config: RunConfig) -> list[tuple[str, list[Panel]]]:
    """Return the charts by section; what was not logged has none."""
    matching = {f"{view}/{entry.matching}_accuracy": entry.title for view, entry in VIEWS.items()}
    masked = {f"{view}/mlm_accuracy": entry.title for view, entry in VIEWS.items()}
    speeds = {f"speed/{view}_samples_per_s": entry.unit for view, entry in VIEWS.items()}
    times = {f"{SHARE}{section}": section for section in SECTIONS}
    rates = sorted({name for _, values in lines for name in values if name.startswith("learning_rate/")})
    negatives = f"in training, {claims.negatives_words(config)}"
    shared = (
        panel(lines, "Matching accuracy", matching, negatives, prior=PRIOR_ACCURACY, y_from_zero=False),
        panel(lines, "Masked-word accuracy", masked),
        panel(lines, "Temperature", {"temperature": ""}, temperature_note(config)),
    )
    whole = (
        panel(lines, "Total loss", {"loss": ""}),
        panel(lines, "Learning rate", dict.fromkeys(rates[:1], ""), calm=False),
        panel(lines, "Gradient norm", {"grad_norm": ""}, "before clipping"),
        panel(lines, "Throughput", speeds, "samples per second"),
        panel(lines, "Seconds per step", {"speed/step_s": ""}),
        panel(lines, "Where the time goes", times, "share of rank 0's time, by section"),
        panel(lines, "Memory", {"speed/memory_gb": "now", "speed/memory_peak_gb": "peak"}, "GB of the rank with most"),
        panel(
            lines, "Slow ranks", SLOW_RANKS, "; ".join(slow_words(lines, config)) or "seconds behind the median rank"
        ),
    )
    every: list[tuple[str, Iterable[Panel | None]]] = [
        *((entry.title, view_panels(lines, view, entry)) for view, entry in VIEWS.items()),
        ("All views", shared),
        ("Zero-shot retrieval while it trained", evaluation_panels(lines, config)),
        ("The run", whole),
    ]
    filled = [(title, [one for one in panels if one is not None]) for title, panels in every]
    return [(title, panels) for title, panels in filled if panels]


def slow_words(lines: Lines, config: RunConfig) -> Iterable[str]:
    """Return sentences about the ranks that kept the others waiting at the end."""
    last = next((values for _, values in reversed(lines) if "speed/step_s" in values), None)
    return () if last is None else slow_ranks(Path(config.run_folder), last)


def evaluation_panels(lines: Lines, config: RunConfig) -> Iterable[Panel | None]:
    """Yield R@10 by group and language of each set that the run was measured on; of many languages the groups alone."""
    settings = config.evaluation
    for name in () if settings is None else settings.sets:
        assert settings is not None
        logged = {key.split("/")[2] for _, values in lines for key in values if key.startswith(f"evaluation/{name}/")}
        shown = sorted(logged) if len(logged) <= MOST_LANGUAGES else [ALL, *settings.groups]
        for way, title in (("t2i", "text → image"), ("i2t", "image → text")):
            labels = {f"evaluation/{name}/{one}/{way}_r10": one for one in shown}
            yield panel(lines, f"{name}, {title}", labels, "R@10 in percent, without training on it")


def view_panels(lines: Lines, view: str, entry: ViewEntry) -> Iterable[Panel | None]:
    """Yield the losses of one view."""
    match, note = f"{view}/{entry.matching}", "matching, negatives 2 : 1"
    yield panel(lines, f"{entry.contrastive.upper()} loss", {f"{view}/{entry.contrastive}": ""}, "contrastive")
    yield panel(lines, f"{entry.matching.upper()} loss", {match: ""}, note, prior=PRIOR_LOSS, y_from_zero=False)
    yield panel(lines, "MLM loss", {f"{view}/mlm": ""}, "masked words, given the other side")
    yield panel(lines, "Loss", {f"{view}/classes": "", f"{view}/answers": ""})
    yield panel(lines, "Accuracy", {f"{view}/accuracy": ""}, "on training batches")
    yield panel(lines, "Box losses", {f"{view}/box": "L1", f"{view}/giou": "1 − GIoU"})


def temperature_note(config: RunConfig) -> str:
    """Return the bounds of the temperature: a line that lies on one of them is no fault of the chart."""
    return f"learned, kept within {config.model.temperature_min:g} … {config.model.temperature_max:g}"


def panel(lines: Lines, title: str, names: Mapping[str, str], note: str = "", **look: Any) -> Panel | None:
    """Return a chart of metrics, by name → label at the line's end; None if none of them was logged."""
    found = []
    for metric, label in names.items():
        points = [(float(step), values[metric]) for step, values in lines if metric in values]
        if points:
            found.append(Series(name=label, points=points))
    return (title, note, Markup(line_chart(found, **look))) if found else None


def recall_rows(facts: RunFacts) -> list[RecallRow]:
    """Return the groups with their languages; a language stands in the first group that the results put it in."""
    results = facts.results
    if "groups" not in results:
        return []
    orders = claims.rerank_orders(results)
    errors = results.get("standard_error") or {}

    def row(kind: str, name: str, title: str, languages: Sequence[RecallRow] = ()) -> RecallRow:
        return RecallRow(
            name=title,
            recall=results[kind][name],
            error=(errors.get(kind) or {}).get(name) or {"t2i": {}, "i2t": {}},
            reranked=[(rule, order[kind][name]) for rule, order in orders if name in order[kind]],
            languages=languages,
        )

    members: Mapping[str, Sequence[str]] = results.get("members") or {"all languages": list(results["languages"])}
    return [
        row(
            "groups",
            name,
            claims.group_title(facts, name),
            [row("languages", tag, language_name(tag)) for tag in members.get(name, ())],
        )
        for name in results["groups"]
    ]


def recall_bars(groups: Sequence[RecallRow], chance: Mapping[str, float], direction: str) -> list[tuple[str, Markup]]:
    """Return (group title, SVG) for each group, all on one scale."""
    every = [row.recall[way]["r10"] for group in groups for row in group.languages for way in ("t2i", "i2t")]
    reach = max(10.0, *every) * 1.02
    found = []
    for group in groups:
        bars = [
            BarRow(
                label=row.name,
                values=row.recall[direction],
                mark=row.reranked[0][1][direction]["r1"] if row.reranked else None,
            )
            for row in group.languages
        ]
        found.append((group.name, Markup(bar_chart(bars, chance, scale_max=reach))))
    return found


def language_name(tag: str) -> str:
    """Return a language's English name, or its tag."""
    return LANGUAGE_NAMES.get(tag, tag)


def licence_link(tag: str) -> Markup:
    """Return a licence tag, linked to its text if we know where that stands."""
    where = LICENCE_TEXTS.get(tag)
    return Markup('<a href="{}">{}</a>').format(where, tag) if where else Markup("{}").format(tag)
