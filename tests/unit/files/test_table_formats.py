"""Tables in every format, with signs that mean something in it."""

from __future__ import annotations

import csv
import io
from xml.etree import ElementTree

from cclm.files.text import FORMATS, html_page, latex_text, to_csv, to_html, to_latex, to_markdown, to_terminal

HEAD, ROWS = ["model", "ar", "zh"], [["a|b & c_d", "61.20 ± 0.41", "–"], ['"x", <y>', "7", "8"]]


def test_terminal_columns_are_flush() -> None:
    lines = to_terminal(HEAD, ROWS, "title").splitlines()
    assert lines[0] == "title" and len({len(line) for line in lines[1:]}) == 1


def test_markdown_escapes_bars() -> None:
    lines = to_markdown(HEAD, ROWS, "title").splitlines()
    assert lines[0] == "**title**" and lines[3] == "| :--- | ---: | ---: |" and r"a\|b & c_d" in lines[4]


def test_csv_comes_back() -> None:
    assert list(csv.reader(io.StringIO(to_csv(HEAD, ROWS, "title")))) == [HEAD, *ROWS]


def test_latex_signs_mean_themselves() -> None:
    text = to_latex(HEAD, ROWS, "50 % of $x")
    assert r"a|b \& c\_d & 61.20 $\pm$ 0.41 & -- \\" in text and r"\caption{50 \% of \$x}" in text
    assert r"\begin{tabular}{lrr}" in text and latex_text("\\{}^~#") == (
        r"\textbackslash{}\{\}\textasciicircum{}\textasciitilde{}\#"
    )
    assert "caption" not in to_latex(HEAD, ROWS)


def test_html_is_well_formed() -> None:
    table = ElementTree.fromstring(to_html(HEAD, ROWS, "a < b"))
    assert [cell.text for cell in table.iter("td")] == [cell for row in ROWS for cell in row]
    assert table.findtext("caption") == "a < b"


def test_a_page_is_whole() -> None:
    page = html_page(to_html(HEAD, ROWS), "a < b")
    assert 'charset="utf-8"' in page and "<title>a &lt; b</title>" in page and page.endswith("</html>")


def test_every_format_takes_the_same() -> None:
    assert all(writer(HEAD, ROWS, "") for writer in FORMATS.values())
