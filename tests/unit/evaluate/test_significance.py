"""Paired tests against twins: draws by hand, and sums of binomials."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from cclm.errors import ConfigError
from cclm.evaluate.significance import compare, mcnemar, mean_scores, over_seeds


def scores(values: list[float], prefix: str = "") -> dict[str, float]:
    return {f"{prefix}{number}": value for number, value in enumerate(values)}


def drawn(share: float, count: int, seed: int) -> list[float]:
    return (np.random.default_rng(seed).random(count) < share).astype(float).tolist()


def test_spread_over_seeds() -> None:
    spread = over_seeds([1.0, 2.0, 4.0])
    assert (spread.mean, spread.num_seeds) == (pytest.approx(7 / 3), 3)
    assert spread.deviation == pytest.approx(np.std([1.0, 2.0, 4.0], ddof=1))
    assert over_seeds([5.0]).deviation is None


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (8, 1), (5, 5), (30, 14)])
def test_mcnemar_is_a_sign_test_of_the_rows_that_differ(gained: int, lost: int) -> None:
    ours, theirs = [1.0] * gained + [0.0] * lost + [1.0, 0.0], [0.0] * gained + [1.0] * lost + [1.0, 0.0]
    total = gained + lost
    tail = sum(comb(total, k) for k in range(min(gained, lost) + 1)) / 2**total if total else 1.0
    assert mcnemar(scores(ours), scores(theirs)) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(scores([0.5]), scores([1.0])) is None


def test_the_interval_is_that_of_draws_by_hand() -> None:
    ours, theirs = drawn(0.6, 400, 0), drawn(0.5, 400, 1)
    found = compare({"ar": scores(ours)}, {"ar": scores(theirs)}, num_resamples=4000)
    difference = np.array(ours) - np.array(theirs)
    chance = np.random.default_rng(7)
    means = 100 * difference[chance.integers(0, 400, (4000, 400))].mean(axis=1)
    assert found.difference == pytest.approx(100 * difference.mean())
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.6)
    assert found.p_mcnemar is not None and found.num_rows == 400


def test_pairing_sees_what_an_unpaired_test_does_not() -> None:
    """Two models that agree on all rows but ten, all of which one of them gains."""
    theirs = drawn(0.5, 1000, 3)
    ours = list(theirs)
    for number in [n for n, value in enumerate(theirs) if not value][:10]:
        ours[number] = 1.0
    found = compare({"ar": scores(ours)}, {"ar": scores(theirs)}, num_resamples=2000)
    assert found.is_significant and found.low > 0 and found.p_mcnemar == pytest.approx(2 / 2**10)
    assert not compare({"ar": scores(theirs)}, {"ar": scores(theirs)}).is_significant


def test_a_translated_set_is_drawn_by_row_and_not_by_language() -> None:
    """The same rows in four languages are not four times as many rows."""
    ours, theirs = scores(drawn(0.56, 300, 4)), scores(drawn(0.5, 300, 5))
    one = compare({"ar": ours}, {"ar": theirs}, num_resamples=2000)
    languages = ("ar", "es", "fr", "ru")
    four = compare(dict.fromkeys(languages, ours), dict.fromkeys(languages, theirs), num_resamples=2000)
    assert (four.low, four.high, four.difference) == pytest.approx((one.low, one.high, one.difference))
    assert four.p_mcnemar is None and four.num_rows == 1200


def test_the_average_weighs_languages_alike() -> None:
    ours = {"id": scores([1.0] * 10, "id-"), "zh": scores([1.0] * 90 + [0.0] * 10, "zh-")}
    theirs = {"id": scores([0.0] * 10, "id-"), "zh": scores([0.0] * 100, "zh-")}
    assert compare(ours, theirs, num_resamples=200).difference == pytest.approx(95.0)


def test_the_same_draws_every_time() -> None:
    ours, theirs = {"ar": scores(drawn(0.6, 50, 0))}, {"ar": scores(drawn(0.5, 50, 1))}
    assert compare(ours, theirs, num_resamples=500) == compare(ours, theirs, num_resamples=500)


def test_other_rows_or_languages_are_refused() -> None:
    for other in ({"ar": scores([1.0])}, {"fr": scores([1.0, 0.0])}):
        with pytest.raises(ConfigError):
            compare({"ar": scores([1.0, 0.0])}, other)
    with pytest.raises(ConfigError):
        mean_scores([scores([1.0]), scores([1.0, 0.0])])
    assert mean_scores([scores([1.0, 0.0]), scores([0.0, 0.0])]) == scores([0.5, 0.0])
