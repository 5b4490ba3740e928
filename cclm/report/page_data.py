"""Fill a `ReportData` from a run folder: its facts and its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cclm.config import RunConfig
from cclm.files.plain import to_yaml
from cclm.report.claims import (
    group_title,
    learned_from,
    measured_words,
    negatives_words,
    rerank_orders,
    rerank_words,
    retrieval_title,
    start_words,
)
from cclm.report.facts import RunFacts, read_facts
from cclm.report.page import (
    GalleryImage,
    GalleryQuery,
    GroupBlock,
    Headline,
    MatchingRow,
    Panel,
    RecallRow,
    ReportData,
    language_name,
)
from cclm.report.svg import Reference, Series
from cclm.run.identity import CheckpointFacts
from cclm.track.metrics import MetricsLine, read_metrics
from cclm.views.table import VIEWS, ViewEntry

MATCHING_PRIOR = {"loss": Reference(value=0.6365, label="prior"), "accuracy": Reference(value=2 / 3, label="prior")}
"""Two wrong pairs stand beside each right one: what a head reaches that ignores its input."""


def report_data(folder: Path, checkpoint: CheckpointFacts | None = None) -> ReportData:
    """Read a run folder; results and exports of another checkpoint than `checkpoint` (if given) count as none.

    Raises:
        ConfigError: there is no config.yaml, or a file cannot be read.
    """
    facts = read_facts(folder, checkpoint)
    lines = read_metrics(folder)
    results = facts.results
    groups = group_blocks(facts)
    matching, prior = matching_rows(results)
    return ReportData(
        title=facts.name,
        lead=lead(facts, groups),
        headlines=headlines(facts, groups),
        panels=panels(lines, facts.config),
        groups=groups,
        chance=results.get("chance") or {},
        num_images=int((results.get("set") or {}).get("num_images", 0)),
        rerank_note=rerank_words(results),
        rerank_mark=next((title for title, _ in rerank_orders(results)), ""),
        retrieval_title=retrieval_title(facts),
        matching=matching,
        matching_prior=prior,
        gallery=[gallery_query(query) for query in facts.gallery],
        sets=facts.sets,
        stages=facts.stages,
        environment=facts.environment,
        seed=facts.seed,
        parity_note=parity_note(facts.parity),
        config_text=to_yaml(facts.config),
    )


def lead(facts: RunFacts, groups: Sequence[GroupBlock]) -> str:
    """Return the sentences under the title."""
    steps = f"{facts.steps:,} steps" if facts.steps else "trained"
    begin = f"A cross-view language model, {steps} {start_words(facts.config)}{learned_from(facts)}."
    if not groups:
        return f"{begin} This checkpoint was not measured yet."
    return f"{begin} {measured_words(facts, sum(len(block.languages) for block in groups))}"


def headlines(facts: RunFacts, groups: Sequence[GroupBlock]) -> list[Headline]:
    """Return the large numbers: recall at 10 of each group, size, and time."""
    chance = (facts.results.get("chance") or {}).get("t2i") or {}
    found = [
        Headline(
            value=f"{block.row.recall['t2i']['r10']:.1f} %",
            label=block.title,
            note=f"text → image R@10, {block.row.recall['t2i']['r10'] / chance['r10']:.0f}\u00a0×\u00a0chance",
        )
        for block in groups
    ]
    parameters = (facts.results.get("model") or {}).get("num_parameters")
    if parameters:
        note = f"trained {start_words(facts.config)}"
        found.append(Headline(value=f"{parameters / 1e6:.1f} M", label="parameters", note=note))
    if facts.train_seconds:
        note = trained_where(facts.environment)
        found.append(Headline(value=f"{facts.train_seconds / 60:.1f} min", label="training", note=note))
    return found


def trained_where(environment: Mapping[str, str]) -> str:
    """Return ranks, cores and machine of the training, as far as they are known."""
    ranks, cores, machine = environment.get("ranks", "1"), environment.get("cores"), environment.get("machine")
    spelled = f"{cores} core" if cores == "1" else f"{cores} cores"
    known = [f"{ranks} ranks"] if ranks != "1" else []
    if cores:  # those of one rank, which ranks may have to share
        known.append(f"up to {spelled} each" if known else spelled)
    return ", ".join([*known, *([machine] if machine and machine != "unknown" else [])])


def panels(lines: Sequence[MetricsLine], config: RunConfig) -> list[tuple[str, list[Panel]]]:
    """Return the charts by section; what was not logged has none."""
    sections = [view_section(lines, view, entry) for view, entry in VIEWS.items()]
    shared = [
        Panel(
            title="Matching accuracy",
            series=series(lines, {f"{view}/{entry.matching}_accuracy": entry.title for view, entry in VIEWS.items()}),
            note=f"in training, {negatives_words(config)}",
            reference=MATCHING_PRIOR["accuracy"],
            y_from_zero=False,
        ),
        Panel(
            title="Masked-word accuracy",
            series=series(lines, {f"{view}/mlm_accuracy": entry.title for view, entry in VIEWS.items()}),
        ),
        Panel(title="Temperature", series=series(lines, {"temperature": ""}), note=temperature_note(config)),
    ]
    sections += [("All views", shared), ("The run", run_panels(lines))]
    filled = [(title, [panel for panel in found if panel.series]) for title, found in sections]
    return [(title, found) for title, found in filled if found]


def temperature_note(config: RunConfig) -> str:
    """Return the bounds of the temperature: a line that lies on one of them is no fault of the chart."""
    return f"learned, kept within {config.model.temperature_min:g} … {config.model.temperature_max:g}"


def view_section(lines: Sequence[MetricsLine], view: str, entry: ViewEntry) -> tuple[str, list[Panel]]:
    """Return the losses of one view."""
    contrastive, match = entry.contrastive, entry.matching
    return entry.title, [
        Panel(
            title=f"{contrastive.upper()} loss", series=series(lines, {f"{view}/{contrastive}": ""}), note="contrastive"
        ),
        Panel(
            title=f"{match.upper()} loss",
            series=series(lines, {f"{view}/{match}": ""}),
            note="matching, negatives 2 : 1",
            reference=MATCHING_PRIOR["loss"],
            y_from_zero=False,
        ),
        Panel(title="MLM loss", series=series(lines, {f"{view}/mlm": ""}), note="masked words, given the other side"),
        Panel(title="Box losses", series=series(lines, {f"{view}/box": "L1", f"{view}/giou": "1 − GIoU"})),
    ]


def run_panels(lines: Sequence[MetricsLine]) -> list[Panel]:
    """Return the charts about the run as a whole."""
    speeds = {f"speed/{view}_samples_per_s": entry.unit for view, entry in VIEWS.items()}
    rates = sorted({name for line in lines for name in line.values if name.startswith("learning_rate/")})
    return [
        Panel(title="Total loss", series=series(lines, {"loss": ""})),
        Panel(title="Learning rate", series=series(lines, {rates[0]: ""} if rates else {}), calm=False),
        Panel(title="Gradient norm", series=series(lines, {"grad_norm": ""}), note="before clipping"),
        Panel(title="Throughput", series=series(lines, speeds), note="samples per second"),
        Panel(title="Seconds per step", series=series(lines, {"speed/step_s": ""})),
        Panel(title="Waiting for data", series=series(lines, {"speed/data_wait": ""}), note="share of the time"),
    ]


def series(lines: Sequence[MetricsLine], names: Mapping[str, str]) -> list[Series]:
    """Return the logged values of some metrics, by metric → label on the chart; a metric without values is left out."""
    found = []
    for metric, label in names.items():
        points = [(float(line.step), line.values[metric]) for line in lines if metric in line.values]
        if points:
            found.append(Series(name=label, x=[x for x, _ in points], y=[y for _, y in points]))
    return found


def group_blocks(facts: RunFacts) -> list[GroupBlock]:
    """Return the groups with their languages; a language stands in the first group that the results put it in."""
    results = facts.results
    if "groups" not in results:
        return []
    orders = rerank_orders(results)
    errors = results.get("standard_error") or {}

    def row(kind: str, name: str) -> RecallRow:
        return RecallRow(
            name=name,
            recall=results[kind][name],
            error=(errors.get(kind) or {}).get(name) or {"t2i": {}, "i2t": {}},
            reranked=[(title, order[kind][name]) for title, order in orders if name in order[kind]],
        )

    members: Mapping[str, Sequence[str]] = results.get("members") or {"all languages": list(results["languages"])}
    return [
        GroupBlock(
            title=group_title(facts, name),
            row=row("groups", name),
            languages=[row("languages", language) for language in members.get(name, ())],
        )
        for name in results["groups"]
    ]


def matching_rows(results: Mapping[str, Any]) -> tuple[list[MatchingRow], MatchingRow | None]:
    """Return the matching head's scores and its prior."""
    found = results.get("matching")
    if not found:
        return [], None
    rows = [
        MatchingRow(
            name=f"{language_name(language)}, {kind} wrong pairs", accuracy=score["accuracy"], loss=score["loss"]
        )
        for language, kinds in found["languages"].items()
        for kind, score in kinds.items()
    ]
    return rows, MatchingRow(name="prior", accuracy=found["prior"]["accuracy"], loss=found["prior"]["loss"])


def gallery_query(query: Mapping[str, Any]) -> GalleryQuery:
    """Return one query of gallery.json."""
    return GalleryQuery(
        language=query["language"],
        text=query["text"],
        meaning=query["meaning"],
        rank=query["rank"],
        images=[GalleryImage(uri=image["uri"], right=image["right"]) for image in query["images"]],
    )


def parity_note(parity: Mapping[str, Any]) -> str:
    """Return what the parity check of the export found."""
    if not parity:
        return ""
    return (
        f"Exported and loaded again by a fresh process that had transformers and the exported folder only: largest "
        f"difference {parity['max_abs']:.1e} (allowed: {parity['tolerance']:g} of the largest value) over features of "
        f"{parity['num_images']} images and {parity['num_texts']} texts and their matching and masked-word logits."
    )
