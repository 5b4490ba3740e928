"""One self-contained HTML page about a run: no script, no outside resource, readable on screen and on paper.

The page is made of a plain `ReportData`; `cclm.report.page_data` fills one from a run folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from cclm.files.template import open_template
from cclm.report.facts import ATTRIBUTIONS, SetFacts, Stage
from cclm.report.svg import BarRow, Reference, Series, bar_chart, line_chart
from cclm.track.progress import spell_duration

LANGUAGE_NAMES = {
    "ar": "Arabic", "bn": "Bengali", "cs": "Czech", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "ms": "Malay", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese",
    "ru": "Russian", "sw": "Swahili", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip
"""Names for the page; another language shows its tag."""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One of the large numbers at the top."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart over the steps."""

    title: str
    series: Sequence[Series]
    note: str = ""
    reference: Reference | None = None
    y_from_zero: bool = True
    calm: bool = True
    """Draw a smoothed line over the values."""


@dataclass(frozen=True, kw_only=True)
class RecallRow:
    """A language or a group: recall in percent, by "t2i" / "i2t" and "r1" / "r5" / "r10"."""

    name: str
    recall: Mapping[str, Mapping[str, float]]
    error: Mapping[str, Mapping[str, float]]
    """Standard errors, in points; the inner mappings may be empty."""
    reranked: Sequence[tuple[str, Mapping[str, Mapping[str, float]]]] = ()
    """(title, recall) by each re-ranking rule; the first is marked in the bars."""


@dataclass(frozen=True, kw_only=True)
class GroupBlock:
    """A group of languages."""

    title: str
    row: RecallRow
    languages: Sequence[RecallRow]


@dataclass(frozen=True, kw_only=True)
class GalleryImage:
    """One image of an answer."""

    uri: str
    """A data URI."""
    right: bool


@dataclass(frozen=True, kw_only=True)
class GalleryQuery:
    """One query and its best images."""

    language: str
    text: str
    meaning: str
    """In English."""
    rank: int
    """Place of the right image, from 1."""
    images: Sequence[GalleryImage]


@dataclass(frozen=True, kw_only=True)
class MatchingRow:
    """The matching head on held-out pairs."""

    name: str
    accuracy: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything on the page."""

    title: str
    lead: str
    """One or two sentences under the title."""
    headlines: Sequence[Headline]
    panels: Sequence[tuple[str, Sequence[Panel]]]
    """(section title, charts)."""
    groups: Sequence[GroupBlock]
    """Empty: not measured."""
    chance: Mapping[str, Mapping[str, float]]
    num_images: int
    """Images in the test gallery."""
    rerank_note: str
    """How re-ranked numbers came about; empty without them."""
    rerank_mark: str
    """Which re-ranking the marks in the bars show; empty without any."""
    retrieval_title: str
    """Heading of the recall table."""
    matching: Sequence[MatchingRow]
    matching_prior: MatchingRow | None
    gallery: Sequence[GalleryQuery]
    sets: Sequence[SetFacts]
    stages: Sequence[Stage]
    environment: Mapping[str, str]
    seed: int | None
    parity_note: str
    """What the parity check of the export found; empty without one."""
    config_text: str
    """config.yaml."""


def render(data: ReportData) -> str:
    """Return the page."""
    page: str = open_template(Path(__file__).with_name("page.html.j2"), html=True).render(
        data=data,
        chart=panel_chart,
        bars=lambda direction: recall_bars(data, direction),
        language_name=language_name,
        licence_link=licence_link,
        times_chance=lambda row, direction: times_chance(data, row, direction),
        spell_duration=spell_duration,
        megabytes=lambda size: f"{size / 1e6:.1f} MB",
    )
    return page


def panel_chart(panel: Panel) -> Markup:
    """Return the SVG of a panel."""
    return Markup(line_chart(panel.series, reference=panel.reference, y_from_zero=panel.y_from_zero, calm=panel.calm))


def recall_bars(data: ReportData, direction: str) -> list[tuple[str, Markup]]:
    """Return (group title, SVG) for each group, all on one scale."""
    every = [row for block in data.groups for row in block.languages]
    reach = max(10.0, *(row.recall[way]["r10"] for row in every for way in ("t2i", "i2t"))) * 1.02
    return [
        (
            block.title,
            Markup(
                bar_chart([bar_row(row, direction) for row in block.languages], data.chance[direction], scale_max=reach)
            ),
        )
        for block in data.groups
    ]


def bar_row(row: RecallRow, direction: str) -> BarRow:
    """Return a language's bars."""
    return BarRow(
        label=language_name(row.name),
        values=row.recall[direction],
        mark=row.reranked[0][1][direction]["r1"] if row.reranked else None,
    )


def times_chance(data: ReportData, row: RecallRow, direction: str) -> str:
    """Return how many times chance a row's recall at 10 is."""
    return f"{row.recall[direction]['r10'] / data.chance[direction]['r10']:.0f} ×"


def language_name(tag: str) -> str:
    """Return a language's English name, or its tag."""
    return LANGUAGE_NAMES.get(tag, tag)


def licence_link(tag: str) -> Markup:
    """Return a licence tag, linked to its text if we know where that stands."""
    where = ATTRIBUTIONS.get(tag)
    return Markup('<a href="{}">{}</a>').format(where, tag) if where else Markup("{}").format(tag)
