"""Small charts as SVG text: lines over steps, and nested bars by language. No library, no script, prints well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, isfinite, log10

PALETTE = ("#2563a8", "#d4700f", "#12877a", "#7b52b9", "#b03060", "#6b6f76")
"""Line colours, told apart in print and by most colour-blind readers."""

INK, FAINT, GRID = "#1d2733", "#6b7683", "#e4e8ec"


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    """Same length as x; values that are not finite are left out."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A dashed horizontal line to compare with."""

    value: float
    label: str


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
    series: Sequence[Series],
    *,
    reference: Reference | None = None,
    y_from_zero: bool = True,
    calm: bool = True,
    width: int = 340,
    height: int = 180,
) -> str:
    """Return an SVG of lines over steps: raw values faint, a smoothed line over them, names at the line ends.

    `y_from_zero`: the axis starts at 0; `calm`: draw the smoothed line (else the values themselves).
    """
    lines = [one for one in map(_finite, series) if one.x]
    if not lines:
        return f'<svg viewBox="0 0 {width} 40" role="img"><text x="8" y="24" fill="{FAINT}">nothing logged</text></svg>'
    left, right, top, bottom = 40, 52, 8, 24
    right += 48 * any(one.name for one in lines)
    values = [value for one in lines for value in one.y] + ([reference.value] if reference else [])
    low, high = (min(0.0, *values) if y_from_zero else min(values)), max(values)
    high = high if high > low else low + 1.0
    high += 0.04 * (high - low)
    first, last = min(one.x[0] for one in lines), max(one.x[-1] for one in lines)
    plot_width, plot_height = width - left - right, height - top - bottom

    def across(x: float) -> float:
        return left + plot_width * (x - first) / max(1e-9, last - first)

    def down(y: float) -> float:
        return top + plot_height * (high - y) / (high - low)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" class="chart">']
    parts += [_grid_line(left, width - right, down(tick), number_text(tick)) for tick in ticks(low, high)]
    parts += [_step_label(across(tick), height - 8, number_text(tick)) for tick in ticks(first, last, 4)]
    if reference:
        parts.append(_dashed(left, width - right, down(reference.value)))
    labels = [(down(reference.value), reference.label, FAINT)] if reference else []
    for one, colour in zip(lines, PALETTE, strict=False):
        points = [(across(x), down(y)) for x, y in zip(one.x, one.y, strict=True)]
        drawn = smoothed(one.y, len(one.y) // 15) if calm else list(one.y)
        parts.append(_polyline(points, colour, "raw"))
        parts.append(_polyline([(across(x), down(y)) for x, y in zip(one.x, drawn, strict=True)], colour, "calm"))
        labels.append((down(drawn[-1]), f"{one.name} {number_text(_three_digits(drawn[-1]))}", colour))
    parts += [_end_label(width - right + 5, y, text, colour) for y, text, colour in spread_labels(labels, top, height)]
    return "".join(parts) + "</svg>"


def spread_labels(
    labels: Iterable[tuple[float, str, str]], top: float, height: float, gap: float = 12.0
) -> list[tuple[float, str, str]]:
    """Move labels apart so that none covers another, the order by height kept, all inside the chart."""
    placed: list[tuple[float, str, str]] = []
    for y, text, colour in sorted(labels):
        placed.append((max(y, placed[-1][0] + gap) if placed else max(y, top), text, colour))
    overshoot = (placed[-1][0] - (height - 24)) if placed else 0.0
    if overshoot > 0:
        limit = height - 24.0
        for index in range(len(placed) - 1, -1, -1):
            y = min(placed[index][0], limit)
            placed[index] = (y, *placed[index][1:])
            limit = y - gap
    return placed


def bar_chart(
    rows: Sequence[BarRow], chance: Mapping[str, float], *, width: int = 460, scale_max: float | None = None
) -> str:
    """Return an SVG of horizontal nested bars: R@1 in R@5 in R@10, a mark for re-ranked R@1, a tick for chance.

    `chance` holds "r1", "r5", "r10" in percent; the tick stands at chance R@10. `scale_max`: where the axis ends.
    """
    row_height, left, right, top = 19, 92, 48, 20
    height = top + row_height * len(rows) + 6
    reach = scale_max or max(10.0, *(row.values["r10"] for row in rows)) * 1.02
    scale = (width - left - right) / reach
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" class="chart">']
    for tick in ticks(0.0, reach, 5):
        x = left + tick * scale
        parts.append(f'<line x1="{x:.1f}" y1="{top - 4}" x2="{x:.1f}" y2="{height - 4}" stroke="{GRID}"/>')
        parts.append(f'<text x="{x:.1f}" y="11" text-anchor="middle" class="tick">{number_text(tick)}</text>')
    for index, row in enumerate(rows):
        y = top + index * row_height
        parts.append(f'<text x="{left - 7}" y="{y + 12}" text-anchor="end" class="name">{escape(row.label)}</text>')
        for name, colour in (("r10", "#c3d7ee"), ("r5", "#7fabdb"), ("r1", "#2563a8")):
            parts.append(
                f'<rect x="{left}" y="{y + 2}" width="{row.values[name] * scale:.1f}" height="13" fill="{colour}"/>'
            )
        if row.mark is not None:
            x = left + row.mark * scale
            parts.append(f'<path d="M{x:.1f} {y + 3} l5 5.5 l-5 5.5 l-5 -5.5 z" fill="#d4700f" stroke="white"/>')
        x = left + chance["r10"] * scale
        parts.append(f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + 17}" stroke="{INK}" stroke-width="1.5"/>')
        x = left + row.values["r10"] * scale + 5
        parts.append(f'<text x="{x:.1f}" y="{y + 12}" class="value">{row.values["r10"]:.1f}</text>')
    return "".join(parts) + "</svg>"


def _finite(one: Series) -> Series:
    kept = [(x, y) for x, y in zip(one.x, one.y, strict=True) if isfinite(y)]
    return Series(name=one.name, x=[x for x, _ in kept], y=[y for _, y in kept])


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def _polyline(points: Sequence[tuple[float, float]], colour: str, kind: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    look = 'stroke-width="1" opacity="0.28"' if kind == "raw" else 'stroke-width="2" stroke-linejoin="round"'
    return f'<polyline points="{path}" fill="none" stroke="{colour}" {look}/>'


def _grid_line(left: float, right: float, y: float, text: str) -> str:
    line = f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{GRID}"/>'
    return f'{line}<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end" class="tick">{text}</text>'


def _step_label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="middle" class="tick">{text}</text>'


def _dashed(left: float, right: float, y: float) -> str:
    return f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{FAINT}" stroke-dasharray="4 3"/>'


def _end_label(x: float, y: float, text: str, colour: str) -> str:
    return f'<text x="{x}" y="{y + 3.5:.1f}" fill="{colour}" class="end">{escape(text)}</text>'
