from __future__ import annotations

from math import sqrt

import pytest
import torch

from cclm.evaluate.retrieval import clustered_standard_error, recall_standard_error


def test_recall_standard_error_of_a_half() -> None:
    assert recall_standard_error(50.0, 100) == pytest.approx(5.0)
    assert recall_standard_error(45.5, 1579) == pytest.approx(1.253, abs=1e-3)
    assert recall_standard_error(0.0, 10) == 0.0


def test_independent_clusters_give_the_binomial_error() -> None:
    hits = torch.tensor([1.0, 0.0] * 50)
    found = clustered_standard_error(hits, torch.arange(100))
    assert found == pytest.approx(100 * sqrt(0.25 / 99), rel=1e-6)


def test_copies_of_the_same_queries_add_no_certainty() -> None:
    hits, cluster = torch.tensor([1.0, 0.0] * 50), torch.arange(100)
    once = clustered_standard_error(hits, cluster)
    ten_languages = clustered_standard_error(hits.repeat(10), cluster.repeat(10))
    assert ten_languages == pytest.approx(once)


def test_one_cluster_says_nothing() -> None:
    assert clustered_standard_error(torch.tensor([1.0, 0.0]), torch.tensor([3, 3])) == 0.0


def test_clustered_error_matches_the_spread_of_repeated_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    means, errors = [], []
    for _ in range(300):
        ease = torch.rand(200, 1, generator=generator)
        hits = (torch.rand(200, 5, generator=generator) < ease).double()
        means.append(100 * float(hits.mean()))
        errors.append(clustered_standard_error(hits.flatten(), torch.arange(200).repeat_interleave(5)))
    assert sum(errors) / len(errors) == pytest.approx(float(torch.tensor(means).std()), rel=0.15)
