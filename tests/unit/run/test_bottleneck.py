from __future__ import annotations

import pytest

from cclm.run.progress import SHARE, bottleneck


def told(**shares: float) -> str:
    return bottleneck({SHARE + name: share for name, share in shares.items()})


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"data": 0.38, "vision": 0.62}, "waiting for data 38%: raise data.num_workers"),
        ({"communication": 0.4, "data": 0.2, "text": 0.4}, "waiting for other ranks 40%"),
        ({"checkpoint": 0.12, "vision": 0.88}, "saving 12%"),
        ({"vision": 0.5, "optimizer": 0.25, "data": 0.05}, "computing 75%: vision 50%, optimizer 25%"),
    ],
)  # fmt: skip
def test_the_largest_share_that_is_too_much_is_named(shares: dict[str, float], words: str) -> None:
    assert told(**shares).startswith(words)


def test_nothing_is_said_of_a_log_without_sections() -> None:
    assert bottleneck({"loss": 3.0, SHARE + "data": None}) == ""
