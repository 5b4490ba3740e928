"""Small charts as SVG text: lines over steps, and nested bars by language. No library, no script, prints well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from math import floor, isfinite, log10

PALETTE = ("#2563a8", "#d4700f", "#12877a", "#7b52b9", "#b03060", "#6b6f76")
"""Line colours, told apart in print and by most colour-blind readers."""

Label = tuple[float, str, str]
"""Height, text and colour."""
GAP = 12.0
INK, FAINT, GRID = "#1d2733", "#6b7683", "#e4e8ec"
TICK = 'class="tick"'
RAW, CALM = 'stroke-width="1" opacity="0.28"', 'stroke-width="2" stroke-linejoin="round"'


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line."""

    name: str
    points: Sequence[tuple[float, float]]
    """(x, y); those whose y is not finite are left out."""


@dataclass(frozen=True, kw_only=True)
class BarRow:
    """One language: three nested bars, a mark, and what chance gives."""

    label: str
    values: Mapping[str, float]
    """Recall "r1", "r5" and "r10", in percent."""
    mark: float | None = None
    """Recall at 1 after re-ranking."""


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round numbers that span [low, high], about so many."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** floor(log10(raw))
    step = next(power * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if power * factor >= raw * 0.999)
    first = floor(low / step + 1e-9)
    numbers = [step * number for number in range(first, first + 3 * about + 4)]
    kept = [number for number in numbers if low - 1e-9 <= number <= high + step * 1e-6]
    return [round(number, 12) for number in kept]


def number_text(value: float) -> str:
    """Return a short spelling: 12,000 as 12k, small numbers with as many digits as they need."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.1e}" if abs(value) < 0.001 else f"{value:g}"


def smoothed(values: Sequence[float], half_width: int) -> list[float]:
    """Return a centred mean with triangular weights over 2 · half_width + 1 values, fewer at the ends."""
    out = []
    for centre in range(len(values)):
        reach = range(max(0, centre - half_width), min(len(values), centre + half_width + 1))
        weights = [half_width + 1 - abs(index - centre) for index in reach]
        out.append(sum(w * values[index] for w, index in zip(weights, reach, strict=True)) / sum(weights))
    return out


def line_chart(
    series: Sequence[Series], *, prior: float | None = None, y_from_zero: bool = True, calm: bool = True
) -> str:
    """Return an SVG of lines over steps: raw values faint, a smoothed line over them (not without `calm`), names at the
    line ends; `prior`: where a dashed line stands to compare with."""
    width, height = 340, 180
    finite = [replace(one, points=[(x, y) for x, y in one.points if isfinite(y)]) for one in series]
    lines = [one for one in finite if one.points]
    if not lines:
        return f'<svg viewBox="0 0 {width} 40" role="img"><text x="8" y="24" fill="{FAINT}">nothing logged</text></svg>'
    left, right, top, bottom = 40, 52, 8, 24
    right += 48 * any(one.name for one in lines)
    values = [y for one in lines for _, y in one.points] + ([] if prior is None else [prior])
    low, high = (min(0.0, *values) if y_from_zero else min(values)), max(values)
    high = high if high > low else low + 1.0
    high += 0.04 * (high - low)
    first, last = min(one.points[0][0] for one in lines), max(one.points[-1][0] for one in lines)
    plot_width, plot_height = width - left - right, height - top - bottom

    def across(x: float) -> float:
        return left + plot_width * (x - first) / max(1e-9, last - first)

    def down(y: float) -> float:
        return top + plot_height * (high - y) / (high - low)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" class="chart">']
    for tick in ticks(low, high):
        parts.append(_line(left, down(tick), width - right, down(tick), GRID))
        parts.append(_text(left - 6, down(tick) + 3.5, number_text(tick), TICK, "end"))
    parts += [_text(across(tick), height - 8, number_text(tick), TICK, "middle") for tick in ticks(first, last, 4)]
    labels = []
    if prior is not None:
        at = down(prior)
        parts.append(_line(left, at, width - right, at, FAINT, ' stroke-dasharray="4 3"'))
        labels.append((at, "prior", FAINT))
    for one, colour in zip(lines, PALETTE, strict=False):
        raw = [y for _, y in one.points]
        drawn = smoothed(raw, len(raw) // 15) if calm else raw
        for heights, look in ((raw, RAW), (drawn, CALM)):
            path = " ".join(f"{across(x):.1f},{down(y):.1f}" for (x, _), y in zip(one.points, heights, strict=True))
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" {look}/>')
        labels.append((down(drawn[-1]), f"{one.name} {number_text(float(f'{drawn[-1]:.3g}'))}", colour))
    for y, text, colour in spread_labels(labels, top, height):
        parts.append(_text(width - right + 5, y + 3.5, text, f'class="end" fill="{colour}"', "start"))
    return "".join(parts) + "</svg>"


def spread_labels(labels: Iterable[Label], top: float, height: float) -> list[Label]:
    """Move labels apart so that none covers another, the order by height kept, all inside the chart."""
    placed: list[Label] = []
    for y, text, colour in sorted(labels):
        placed.append((max(y, placed[-1][0] + GAP) if placed else max(y, top), text, colour))
    limit = height - 24.0
    for index in reversed(range(len(placed))):
        y, text, colour = placed[index]
        placed[index] = (min(y, limit), text, colour)
        limit = placed[index][0] - GAP
    return placed


def bar_chart(rows: Sequence[BarRow], chance: Mapping[str, float], *, scale_max: float | None = None) -> str:
    """Return an SVG of horizontal nested bars: R@1 in R@5 in R@10 (percent, as `chance` by name), a mark for re-ranked
    R@1, a tick for chance R@10. `scale_max`: where the axis ends."""
    width, row_height, left, right, top = 460, 19, 92, 48, 20
    height = top + row_height * len(rows) + 6
    reach = scale_max or max(10.0, *(row.values["r10"] for row in rows)) * 1.02
    scale = (width - left - right) / reach
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" class="chart">']
    for tick in ticks(0.0, reach, 5):
        x = left + tick * scale
        parts.append(_line(x, top - 4, x, height - 4, GRID))
        parts.append(_text(x, 11, number_text(tick), TICK, "middle"))
    for index, row in enumerate(rows):
        y = top + index * row_height
        parts.append(_text(left - 7, y + 12, row.label, 'class="name"', "end"))
        for name, colour in (("r10", "#c3d7ee"), ("r5", "#7fabdb"), ("r1", "#2563a8")):
            length = row.values[name] * scale
            parts.append(f'<rect x="{left}" y="{y + 2}" width="{length:.1f}" height="13" fill="{colour}"/>')
        if row.mark is not None:
            x = left + row.mark * scale
            parts.append(f'<path d="M{x:.1f} {y + 3} l5 5.5 l-5 5.5 l-5 -5.5 z" fill="#d4700f" stroke="white"/>')
        x = left + chance["r10"] * scale
        parts.append(_line(x, y, x, y + 17, INK, ' stroke-width="1.5"'))
        value = row.values["r10"]
        parts.append(_text(left + value * scale + 5, y + 12, f"{value:.1f}", 'class="value"', "start"))
    return "".join(parts) + "</svg>"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, look: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{look}/>'


def _text(x: float, y: float, text: str, look: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {look}>{escape(text)}</text>'
