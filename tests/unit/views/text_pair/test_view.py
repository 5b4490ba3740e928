"""Batches of the text-pair view: which texts share a row, who plays which role, in which order groups are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from cclm.data.collate import FusionDraws
from cclm.data.tokens import TextTokenizer
from cclm.views.text_pair.options import TextPairConfig
from cclm.views.text_pair.view import TextPairBatch, TextPairSample, TextPairSource, collate
from tests.left_to_long import left_to_slow
from tests.tiny_batches import hidden, masked_draws, texts
from tests.tiny_views import Views, change, only, open_dataset


def batch_of(views: Views, step: int, rank: int = 0, world_size: int = 1) -> TextPairBatch:
    return cast(TextPairBatch, open_dataset(views, rank=rank, world_size=world_size)[step].views["text_pair"])


def content(batch: TextPairBatch, first_row: int = 0) -> dict[str, list[Any]]:
    """All that a batch holds, without the padding and the numbers of rows."""
    rows = texts(batch.text)
    return {
        "first": [rows[row] for row in batch.first_P],
        "second": [rows[row] for row in batch.second_P],
        "memory": [rows[row] for row in batch.memory_S],
        "query": [rows[row] for row in batch.query_S],
        "identity_P": batch.identity_P.tolist(),
        "identity_S": batch.identity_S.tolist(),
        "rows": (batch.matching_row_F + first_row).tolist(),
        "noise": batch.noise_second_FG.tolist(),
        "noise_first": batch.noise_first_FG.tolist(),
        "masked": hidden(batch.masked),
        "ledger": batch.ledger_S.tolist(),
    }


@pytest.mark.parametrize("world_size", left_to_slow([2, 4], 4))
def test_the_ranks_shares_make_the_same_global_batch(views: Views, world_size: int) -> None:
    for step in (0, 7):
        shares = [
            content(batch_of(views, step, rank, world_size), rank * 8 // world_size) for rank in range(world_size)
        ]
        joined = {name: [item for share in shares for item in share[name]] for name in shares[0]}
        assert joined == content(batch_of(views, step))


def test_the_parts_fit_together(views: Views) -> None:
    batch = batch_of(views, 2)
    assert batch.matching_row_F.tolist() == [0, 2, 4, 6]
    assert batch.first_P.shape == batch.identity_P.shape == (24,)
    assert batch.identity_P.view(8, 3).eq(batch.identity_S[:, None]).all()
    plain = texts(batch.text)
    for (seen, slots), row in zip(hidden(batch.masked), batch.memory_S[batch.matching_row_F], strict=True):
        original, columns = plain[row], {column for column, _ in slots}
        assert slots and all(original[column] == label for column, label in slots)
        assert all(seen[at] == original[at] for at in range(len(original)) if at not in columns)


def test_equal_texts_stand_once_and_the_shared_sentence_is_one_row(views: Views) -> None:
    for step in range(6):
        batch = batch_of(views, step)
        rows = [tuple(row) for row in texts(batch.text)]
        assert len(set(rows)) == len(rows)
        assert batch.first_P.view(8, 3).eq(batch.first_P.view(8, 3)[:, :1]).all()
        assert set(batch.first_P.tolist()) | set(batch.second_P.tolist()) == set(range(len(rows)))
        first = torch.stack([batch.first_P.view(8, 3)[:, 0], batch.second_P.view(8, 3)[:, 0]])
        roles = torch.stack([batch.memory_S, batch.query_S])
        assert torch.equal(first.sort(0).values, roles.sort(0).values)


def test_roles_are_swapped_by_a_coin(views: Views) -> None:
    for probability, share in ((0.0, 0.0), (1.0, 1.0), (0.5, 0.5)):
        dataset = open_dataset(only(change(views, "text_pair", swap_probability=probability), "text_pair"))
        parts = [cast(TextPairBatch, dataset[step].views["text_pair"]) for step in range(25)]
        swapped = [(part.memory_S != part.first_P.view(8, 3)[:, 0]).float().mean().item() for part in parts]
        assert np.mean(swapped) == pytest.approx(share, abs=0.12)


def test_length_buckets_change_the_order_and_no_sample(views: Views) -> None:
    """One epoch of 57 groups in batches of 8: no group twice, another order, the same for two ranks."""
    whole_epoch = only(change(views, "text_pair", num_lanes=1, window=57), "text_pair")
    in_buckets = change(whole_epoch, "text_pair", length_buckets=7)
    seen = []
    for chosen in (whole_epoch, in_buckets):
        dataset = open_dataset(chosen)
        parts = [cast(TextPairBatch, dataset[step].views["text_pair"]) for step in range(7)]
        seen.append([identity for part in parts for identity in part.identity_S.tolist()])
    assert seen[0] != seen[1] and len(set(seen[0])) == len(set(seen[1])) == 56
    halves = [batch_of(in_buckets, 2, rank, 2) for rank in (0, 1)]
    assert [identity for half in halves for identity in half.identity_S.tolist()] == seen[1][16:24]


def test_remembered_groups_change_no_sample(views: Views, tokenizer: TextTokenizer) -> None:
    config = cast(TextPairConfig, views["text_pair"])
    plain, keeping = (
        TextPairSource("text_pair", replace(config, cache_groups=groups), tokenizer, 1) for groups in (0, 100)
    )
    for step in range(12):
        first, second = plain.sample(step, 3)[1], keeping.sample(step, 3)[1]
        assert (first.ledger, first.others, first.swapped) == (second.ledger, second.others, second.swapped)


def sample(anchor: list[int], others: list[list[int]], swapped: bool, fusion: FusionDraws | None) -> TextPairSample:
    return TextPairSample(
        anchor=anchor,
        others=others,
        swapped=swapped,
        languages=["en", "de"],
        identity=sum(anchor),
        ledger=-len(others),
        fusion=fusion,
    )


def test_equal_texts_share_a_row() -> None:
    fusion = masked_draws([0, 9, 2], [1], [5])
    batch = collate(
        [
            sample([0, 5, 2], [[0, 6, 2], [0, 7, 2]], False, fusion),
            sample([0, 6, 2], [[0, 8, 8, 2], [0, 5, 2]], True, None),
        ],
        range(6, 8),
        is_counted=True,
        pad_id=1,
    )
    assert batch.row_R.tolist() == [6, 7]
    assert batch.text.ids_BL.tolist() == [[0, 5, 2, 1], [0, 6, 2, 1], [0, 7, 2, 1], [0, 8, 8, 2]]
    assert batch.first_P.tolist() == [0, 0, 1, 1]
    assert batch.second_P.tolist() == [1, 2, 3, 0]
    assert batch.memory_S.tolist() == [0, 3] and batch.query_S.tolist() == [1, 1]
    assert batch.identity_S.tolist() == [7, 8] and batch.identity_P.tolist() == [7, 7, 8, 8]
    assert batch.matching_row_F.tolist() == [0]
    assert batch.noise_second_FG.tolist() == [[0.0, 0.0]] and batch.noise_first_FG.tolist() == [[1.0, 1.0]]
    assert batch.ledger_S.tolist() == [-2, -2]
