"""What one rank meets, all are told: by the sentence and the cause of the first that failed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cclm.distributed.agreement import on_every_rank
from cclm.distributed.collectives import SINGLE, collectives
from cclm.errors import Cause, CheckpointError, ConfigError
from tests.ranks.harness import on_ranks


def _act(kind: str, rank: int) -> int:
    if rank == 1 and kind == "full disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if rank == 1 and kind == "wrong setting":
        raise ConfigError(expected="a", got="b", do="c.")
    if rank >= 1 and kind == "bug":
        raise KeyError("no such thing")
    return rank * 10


def _meet(kind: str) -> tuple[str, Cause | None, object]:
    ranks = collectives()
    try:
        return "", None, on_every_rank(ranks, lambda: _act(kind, ranks.rank), "do it")
    except CheckpointError as error:
        return str(error), error.cause, None
    except KeyError as error:
        return repr(error), None, None


def test_results_come_by_rank() -> None:
    assert on_ranks(_meet, 3, "nothing") == [("", None, [0, 10, 20])] * 3


@pytest.mark.parametrize(
    ("kind", "cause", "advice"),
    [
        ("full disk", Cause.DISK_FULL, "Free space"),
        ("wrong setting", Cause.USER_ERROR, "Mend what the first rank named"),
    ],
)
def test_one_rank_s_error_is_every_rank_s_with_its_cause(kind: str, cause: Cause, advice: str) -> None:
    for text, found, _ in on_ranks(_meet, 3, kind):
        assert found is cause
        assert text.startswith("expected every rank to do it, got rank 1: ") and advice in text


def test_a_bug_is_raised_where_it_is_and_told_elsewhere() -> None:
    first, *others = on_ranks(_meet, 3, "bug")
    assert first[1] is Cause.EXIT and "rank 1: KeyError" in first[0] and "rank 2: KeyError" in first[0]
    assert [text for text, _, _ in others] == ["KeyError('no such thing')"] * 2


def test_one_process_needs_no_group() -> None:
    assert on_every_rank(SINGLE, lambda: "x", "do it") == ["x"]
    with pytest.raises(CheckpointError) as caught:
        on_every_rank(SINGLE, lambda: Path("/does/not/exist").stat(), "look")
    assert caught.value.cause is Cause.USER_ERROR
