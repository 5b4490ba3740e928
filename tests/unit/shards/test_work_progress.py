"""Plain lines in a log, a bar on a terminal."""

from __future__ import annotations

import contextlib
import io

import pytest
from rich.console import Console

from shards import progress
from shards.progress import WorkProgress


def test_a_log_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with WorkProgress("building", 100, "records", Console(file=out, width=100)) as bar:
        for now, amount, done_before in ((5.0, 20, True), (20.0, 40, False), (30.0, 40, False)):  # noqa: B007
            bar.advance(amount, done_before=done_before)
    assert out.getvalue().splitlines() == [
        "building: 60/100  2 records/s  ETA 0:20",
        "building: 100/100  3 records/s  ETA 0:00",
    ]


def test_what_was_done_before_has_no_speed() -> None:
    out = io.StringIO()
    with WorkProgress("building", 4, "records", Console(file=out, width=100)) as bar:
        bar.advance(4, done_before=True)
    assert out.getvalue() == "building: 4/4  done before\n"


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    with WorkProgress("building", 4, "records", Console(file=out, force_terminal=True, width=100)) as bar:
        bar.advance(2, note="images")
        bar.advance(2, note="texts")
    text = out.getvalue()
    assert "4/4" in text and "texts" in text and "records/s" in text and "ETA" in text


def test_without_a_total_there_is_throughput_but_no_eta() -> None:
    out = io.StringIO()
    with WorkProgress("reading", None, "records", Console(file=out, width=100)) as bar:
        bar.advance(60)
    (line,) = out.getvalue().splitlines()
    assert line.startswith("reading: 60  ") and line.endswith(" records/s")


def test_the_last_line_comes_once_and_not_after_a_failure() -> None:
    for error, lines in ((None, 1), (KeyError(), 0)):
        out = io.StringIO()
        with contextlib.suppress(KeyError), WorkProgress("reading", 60, "records", Console(file=out, width=100)) as bar:
            bar.advance(60)
            if error:
                raise error
        assert len(out.getvalue().splitlines()) == lines


def test_a_total_that_is_known_later_gives_an_eta() -> None:
    out = io.StringIO()
    with WorkProgress("reading", None, "records", Console(file=out, width=100)) as bar:
        bar.advance(60)
        bar.expect(90)
        bar.advance(30)
    assert "reading: 90/90  " in out.getvalue() and "ETA" in out.getvalue()
