from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from cclm.track.progress import Progress, spell_duration, stage


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def console(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=120, _environ={"TERM": "xterm"}), stream


def follow(total: int, start: int, step_s: float) -> list[str]:
    clock, (output, stream) = Clock(), console()
    with Progress(total, start, "training", console=output, clock=clock) as progress:
        for step in range(start, total):
            clock.now += step_s
            progress.update(step, loss=1.25, samples_per_s=64.0)
    return stream.getvalue().splitlines()


def test_a_log_gets_a_line_now_and_then_and_at_both_ends() -> None:
    lines = follow(100, 0, 1.0)
    assert [line.split()[1] for line in lines] == ["1/100", "21/100", "41/100", "61/100", "81/100", "100/100"]
    assert lines[1] == "training  21/100  21 %  loss 1.250  64.0 samples/s  ETA 1:19"
    assert lines[-1].endswith("ETA 0:00")


def test_a_resumed_run_counts_from_where_it_is() -> None:
    lines = follow(110, 100, 60.0)
    assert lines[0].split()[1:3] == ["101/110", "92"]
    assert lines[0].endswith("ETA 9:00")
    assert lines[5].endswith("ETA 4:00")


def test_a_slow_first_step_does_not_spoil_the_estimate() -> None:
    clock, (output, stream) = Clock(), console()
    with Progress(11, 0, "training", every_s=0, console=output, clock=clock) as progress:
        for seconds in (100.0, 1.0, 1.0):
            clock.now += seconds
            progress.update(progress_step(stream))
    assert stream.getvalue().splitlines()[-1].endswith("ETA 0:08")


def progress_step(stream: io.StringIO) -> int:
    return len(stream.getvalue().splitlines())


def test_what_was_not_measured_is_left_out() -> None:
    output, stream = console()
    with Progress(1, 0, "reading", console=output) as progress:
        progress.update(0)
    assert stream.getvalue() == "reading  1/1  100 %  ETA 0:00\n"


def test_a_disabled_progress_says_nothing() -> None:
    output, stream = console(terminal=True)
    with Progress(1, 0, "training", enabled=False, console=output) as progress:
        progress.update(0, loss=1.0)
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_with_eta() -> None:
    output, stream = console(terminal=True)
    with Progress(4, 2, "training", console=output) as progress:
        for step in (2, 3):
            progress.update(step, loss=0.5, samples_per_s=10.0)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "2/4" in text
    assert "4/4" in text
    assert "loss 0.500  10.0 samples/s  ETA 0:00" in text
    assert "━" in text


def test_a_long_line_is_not_broken() -> None:
    output, stream = console()
    stage("fetch", "word " * 60, console=output)
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().startswith("▶ fetch  word word")


def test_a_stage_may_hold_square_brackets() -> None:
    output, stream = console()
    stage("train", "losses [itc] and [/b]", console=output)
    assert stream.getvalue() == "▶ train  losses [itc] and [/b]\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599.4, "59:59"),
        (3600, "1:00:00"),
        (90061, "25:01:01"),
        (-3, "0:00"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert spell_duration(seconds) == text
