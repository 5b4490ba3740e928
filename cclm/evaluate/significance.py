"""Is a difference more than luck? Two models on the same rows: a paired bootstrap, and McNemar's exact test.

The two models answer the same rows, so what counts is where they differ: an unpaired test takes rows that both find
hard for noise, and needs several times as many. Rows with one id in several languages (a translated test set) hang
together, and are drawn together.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cclm.errors import ConfigError

NUM_RESAMPLES = 9_999
_BATCH_NUMBERS = 5_000_000
"""So many numbers are drawn at once: 40 MB."""
Scores = Mapping[str, float]
"""Score by row id, between 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number over seeds."""

    mean: float
    deviation: float | None
    """Sample standard deviation (over n − 1); None of one seed."""
    num_seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model beside a baseline, on the rows that both have."""

    difference: float
    """Model minus baseline, in points."""
    low: float
    high: float
    """95 % confidence interval of the difference."""
    p_bootstrap: float
    """Two-sided, of no difference."""
    p_mcnemar: float | None
    """The exact test's; None where scores are not 0 or 1 (means over seeds, soft scores) or of several languages."""
    num_rows: int

    @property
    def is_significant(self) -> bool:
        """Return whether the bootstrap says so at 5 %."""
        return self.p_bootstrap < 0.05


def over_seeds(values: Sequence[float]) -> Spread:
    """Return mean and deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), deviation=deviation, num_seeds=len(values))


def mean_scores(of_seeds: Sequence[Scores]) -> dict[str, float]:
    """Return each row's mean score over seeds (ConfigError: they have other rows)."""
    first = of_seeds[0]
    for scores in of_seeds[1:]:
        _same_rows(first, scores)
    return {row: statistics.fmean(scores[row] for scores in of_seeds) for row in first}


def compare(
    model: Mapping[str, Scores], baseline: Mapping[str, Scores], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Comparison:
    """Compare two models on one language, or on the average over several.

    Args:
        model: language → score by row id.
        baseline: the same languages and rows.
        num_resamples: how often rows are drawn.
        seed: of the draws.

    Raises:
        ConfigError: the two have other languages or rows.
    """
    if set(model) != set(baseline):
        got = f"{', '.join(sorted(model))} and {', '.join(sorted(baseline))}"
        raise ConfigError(expected="the same languages", got=got, do="Measure both on the same languages.")
    for language, scores in model.items():
        _same_rows(scores, baseline[language])
    weighted: dict[str, float] = {}
    for language, scores in model.items():
        for row, score in scores.items():
            share = (score - baseline[language][row]) / (len(model) * len(scores))
            weighted[row] = weighted.get(row, 0.0) + share
    values = np.array(list(weighted.values())) * len(weighted) * 100.0
    low, high, p_bootstrap = _paired_bootstrap(values, num_resamples, seed)
    language = next(iter(model))
    return Comparison(
        difference=float(values.mean()),
        low=low,
        high=high,
        p_bootstrap=p_bootstrap,
        p_mcnemar=mcnemar(model[language], baseline[language]) if len(model) == 1 else None,
        num_rows=sum(map(len, model.values())),
    )


def _same_rows(one: Scores, other: Scores) -> None:
    if one.keys() != other.keys():
        got = f"{len(one.keys() ^ other.keys()):,} rows that only one has"
        raise ConfigError(expected="two models on the same rows", got=got, do="Measure both on the same data file.")


def _paired_bootstrap(differences: np.ndarray, num_resamples: int, seed: int) -> tuple[float, float, float]:
    """Return a 95 % interval of the mean, and the two-sided p of a mean of 0 (never below 1 / draws)."""
    from scipy.stats import bootstrap  # takes a second to import

    if len(differences) < 2 or not np.ptp(differences):
        # Without any variation between rows, drawing them again changes nothing.
        value = float(differences.mean()) if len(differences) else 0.0
        return value, value, 2.0 / (num_resamples + 1) if value and len(differences) > 1 else 1.0
    found = bootstrap(
        (differences,),
        np.mean,
        n_resamples=num_resamples,
        batch=max(1, _BATCH_NUMBERS // len(differences)),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    drawn = found.bootstrap_distribution
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p_value = min(1.0, 2.0 * (beyond + 1) / (num_resamples + 1))
    return float(found.confidence_interval.low), float(found.confidence_interval.high), p_value


def mcnemar(model: Scores, baseline: Scores) -> float | None:
    """Return the exact two-sided p of McNemar's test: of the rows that one of them has right, is half each one's?

    None: a score is neither 0 nor 1.
    """
    from scipy.stats import binomtest

    if not {*model.values(), *baseline.values()} <= {0.0, 1.0}:
        return None
    gained = sum(score > baseline[row] for row, score in model.items())
    lost = sum(score < baseline[row] for row, score in model.items())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
