"""What holds for every test of the training."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cclm.config import RunConfig
from cclm.costs import step
from cclm.costs.recipe import Counter

COUNTERS: dict[str, Counter] = {}
"""By network, and which of its parts are frozen."""


@pytest.fixture(autouse=True)
def as_on_a_rank(one_thread: None) -> None:
    """On one thread."""


@pytest.fixture(autouse=True, scope="module")
def counted_once() -> Iterator[None]:
    """The costs of a network that many runs train are counted once: that took more time than their steps."""

    def counter_of(config: RunConfig) -> Counter:
        key = repr((config.model, config.start.freeze))
        return COUNTERS.get(key) or COUNTERS.setdefault(key, Counter(config))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "Counter", counter_of)
        yield
