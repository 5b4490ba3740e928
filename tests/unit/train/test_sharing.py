"""How wrong partners are drawn from what the ranks share: one process, two groups of six rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cclm.data.batch import MaskedTokens, Tokens, ViewBatch
from cclm.distributed.collectives import SINGLE
from cclm.train.sharing import Negatives, Sharing
from cclm.views.view import EncodedRows, Pairing
from tests.tiny_views import IMAGE_TEXT

GROUP = 6
IDENTITY = torch.tensor([0, 0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5])
"""The second group shows one thing."""


def draw(
    memory: Tensor, query: Tensor, noise: tuple[Tensor, Tensor], temperature: float = 1.0, **changes: Tensor
) -> Negatives:
    """Negatives of the first two rows of each group; features come in another order than the rows' numbers."""
    order = torch.tensor([7, 2, 11, 0, 5, 9, 1, 3, 4, 6, 8, 10])
    own = torch.tensor([order.tolist().index(row) for row in (0, 1, 6, 7)])
    none = torch.zeros(0)
    batch = ViewBatch(
        text=Tokens(ids_BL=none, mask_BL=none),
        row_R=order,
        matching_row_F=own,
        counted_F=torch.ones(4),
        noise_second_FG=noise[0],
        noise_first_FG=noise[1],
        masked=MaskedTokens(tokens=Tokens(ids_BL=none, mask_BL=none), slot_T=none, label_T=none),
        ledger_S=none,
    )
    identity = changes.get("identity", IDENTITY)
    sides = [EncodedRows(states=(none, none), feature_BE=feature[order]) for feature in (memory, query)]
    pairing = Pairing(
        name="itm", weight=1.0, memory=sides[0], query=sides[1], identity_R=identity[order], temperature_factor=2.0
    )
    shared = {"v/rows": order, "v/identity": identity[order], "v/memory": memory[order], "v/query": query[order]}
    config = replace(IMAGE_TEXT, batch_size=12, negative_group=GROUP, matching_rows=4)
    sharing = Sharing(collectives=SINGLE, configs={"v": config}, num_parts=1)
    return sharing.negatives("v", batch, pairing, shared, torch.tensor([temperature / 2]), 1.0)


def test_the_hardest_of_another_identity_in_the_group_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    memory, query = torch.randn(12, 4, generator=generator), torch.randn(12, 4, generator=generator)
    still = torch.zeros(4, GROUP), torch.zeros(4, GROUP)
    found = draw(memory, query, still, identity=torch.tensor([0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9]))
    row_F = torch.tensor([0, 1, 6, 7])
    identity = torch.tensor([0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9])
    for drawn, similarity in ((found.query_F, memory[row_F] @ query.T), (found.memory_F, query[row_F] @ memory.T)):
        similarity[:2, GROUP:] = similarity[2:, :GROUP] = -torch.inf
        similarity[identity[row_F][:, None] == identity[None]] = -torch.inf
        assert torch.equal(drawn, similarity.argmax(1)), "without noise"
    assert found.is_valid_F.all() and (found.num_rows, found.num_valid.item()) == (4, 4)


def test_the_noise_of_each_side_is_its_own() -> None:
    """Features that are all alike leave the draw to the noise."""
    same, chosen = torch.ones(12, 2), torch.full((4, GROUP), -torch.inf)
    second, first = chosen.clone(), chosen.clone()
    second[:, 4], first[:, 5] = 0.0, 0.0
    found = draw(same, same, (second, first), identity=torch.arange(12))
    assert found.query_F.tolist() == [4, 4, 10, 10] and found.memory_F.tolist() == [5, 5, 11, 11]


def test_the_temperature_decides_how_much_noise_matters() -> None:
    """The factor 2 of the pairing cancels the half that is given."""
    memory = torch.zeros(12, 1)
    query = memory.clone()
    memory[:2], query[3] = 1.0, 1.0
    noise = torch.zeros(4, GROUP)
    noise[:, 5] = 2.0
    assert draw(memory, query, (noise, noise), 1.0).query_F.tolist()[:2] == [5, 5], "one against two"
    assert draw(memory, query, (noise, noise), 0.25).query_F.tolist()[:2] == [3, 3], "four against two"


def test_a_group_that_shows_one_thing_has_no_negatives() -> None:
    noise = torch.zeros(4, GROUP)
    found = draw(torch.ones(12, 2), torch.ones(12, 2), (noise, noise))
    assert found.is_valid_F.tolist() == [True, True, False, False] and found.num_valid.item() == 2


def test_a_large_group_is_drawn_from_by_one_number_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that are all alike: the lowest number draws the first of another identity, the highest the last."""
    monkeypatch.setattr("cclm.train.sharing.LARGEST_GROUP_WITH_NOISE", GROUP - 1)
    same = torch.ones(12, 2)
    lowest, highest = torch.zeros(4, 1), torch.full((4, 1), 1.0 - 2**-20)
    found = draw(same, same, (lowest, highest), identity=torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 5, 5, 5, 5]))
    assert found.query_F.tolist() == [2, 2, 7, 6] and found.memory_F.tolist() == [5, 5, 7, 11]
    assert found.is_valid_F.all() and found.num_valid.item() == 4
