"""Text for people: durations, lists of numbers, the word that was probably meant, and tables in the formats of papers,
pages and spreadsheets, each a small function of head and rows."""

from __future__ import annotations

import csv
import difflib
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
Head = Sequence[str]
Rows = Sequence[Sequence[str]]
_LATEX: Final = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "→": r"$\to$", "†": r"$\dagger$",
    "‡": r"$\ddagger$", "§": r"\S{}",
    "–": "--", "…": r"\ldots{}", "≥": r"$\ge$", "×": r"$\times$",
}  # fmt: skip
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em;max-width:80em}table{border-collapse:collapse;margin:1em 0}"
    "th,td{padding:.2em .7em;border-bottom:1px solid #ddd;text-align:left}.n{text-align:right}"
    "caption{font-weight:600;text-align:left}li{font-size:.9em}"
)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Lay out rows under a head: columns as wide as their longest word, the last as long as it likes.

    `right`: names of the columns that are flush right.
    """
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(head, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def visible(text: str) -> str:
    """Return a text whose control characters, which could end a line or colour a terminal, are written as escapes."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def duration(seconds: float) -> str:
    """Say a duration with its two largest units at most: "41 s", "12 min", "3 h 20 min", "2 d 4 h"."""
    whole = round(seconds)
    if whole < 2 * MINUTE_S:
        return f"{max(whole, 0)} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min"
    if whole < DAY_S:
        return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S} min"
    return f"{whole // DAY_S} d {whole % DAY_S // HOUR_S} h"


def nearest_word(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return the known word that was probably meant; "" if none is like it."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message that names the word that was probably meant; "" if none is like it."""
    near = nearest_word(word, known)
    return f"; did you mean {near}?" if near else ""


def spans(numbers: Iterable[int]) -> str:
    """Say sorted numbers in short: 0-3,7."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in found)


def to_terminal(head: Head, rows: Rows, title: str = "") -> str:
    """Return aligned columns; all but the first are flush right."""
    return "\n".join([*([title] if title else []), table(head, rows, right=head[1:])])


def to_markdown(head: Head, rows: Rows, title: str = "") -> str:
    """Return a table of GitHub's Markdown."""
    lines = [_bars(head), _bars([":---", *["---:"] * (len(head) - 1)])]
    lines += [_bars([cell.replace("|", r"\|").replace("\n", " ") for cell in row]) for row in rows]
    return "\n".join([*([f"**{title}**", ""] if title else []), *lines])


def _bars(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def to_csv(head: Head, rows: Rows, title: str = "") -> str:
    """Return lines as in RFC 4180; the title is not part of them."""
    text = io.StringIO()
    csv.writer(text).writerows([head, *rows])
    return text.getvalue().rstrip("\r\n")


def to_latex(head: Head, rows: Rows, title: str = "") -> str:
    """Return a tabular with the rules of the package booktabs, in a table with a caption if there is a title."""
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", _ampersands(head), r"\midrule"]
    lines += [*map(_ampersands, rows), r"\bottomrule", r"\end{tabular}"]
    if title:
        lines = [r"\begin{table}[t]", r"\centering", *lines, rf"\caption{{{latex_text(title)}}}", r"\end{table}"]
    return "\n".join(lines)


def _ampersands(cells: Sequence[str]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\"


def latex_text(text: str) -> str:
    """Return a text whose signs mean themselves in LaTeX."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


def to_html(head: Head, rows: Rows, title: str = "") -> str:
    """Return a table element; numbers have the class "n"."""
    caption = f"<caption>{html.escape(title)}</caption>\n" if title else ""
    body = "\n".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return f"<table>\n{caption}<thead><tr>{_cells('th', head)}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def html_page(body: str, title: str) -> str:
    """Return a page around tables, without outside resources."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>"
    )


def _cells(tag: str, cells: Sequence[str]) -> str:
    first, *others = (html.escape(cell) for cell in cells)
    return f"<{tag}>{first}</{tag}>" + "".join(f'<{tag} class="n">{cell}</{tag}>' for cell in others)


FORMATS: Final[Mapping[str, Callable[[Head, Rows, str], str]]] = {
    "terminal": to_terminal,
    "csv": to_csv,
    "latex": to_latex,
    "markdown": to_markdown,
    "html": to_html,
}
"""Name → writer(head, rows, title)."""
