"""The files of any number of ranks are one state again; those of real ranks are in tests/ranks/test_checkpoint.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cclm.engine.fragments import Fragment, share_path
from cclm.engine.stored_weights import StoredState, StoredTensor, stored_average, stored_weights
from cclm.errors import CheckpointError
from tests.unit.engine.state_files import pieces, write_state

WEIGHTS = {
    "words": torch.randn(5, 4),
    "bias": torch.randn(1),
    "matrix": torch.randn(7, 3),
    "norm": torch.randn(8),
}


@pytest.mark.parametrize("world_size", [1, 2, 3, 11])
def test_any_number_of_ranks_gives_the_weights(tmp_path: Path, world_size: int) -> None:
    """Also eleven, of which many hold nothing of the smaller ones."""
    buffers = {"count": torch.tensor(3), "mean": torch.randn(2)}
    write_state(tmp_path, {"weights": WEIGHTS}, world_size, buffers, aliases={"head": "words"})
    found = stored_weights(tmp_path)
    assert found.keys() == {*WEIGHTS, *buffers, "head"} and found["head"] is found["words"]
    for name, value in {**WEIGHTS, **buffers}.items():
        assert found[name].shape == tuple(value.shape) and torch.equal(found[name].whole(), value), name
        assert torch.equal(torch.cat(found[name].parts), value.flatten())


@pytest.mark.parametrize("before", [1, 2, 3, 5])
def test_ranks_take_what_they_hold_now(tmp_path: Path, before: int) -> None:
    write_state(tmp_path, {"weights": WEIGHTS, "exp_avg": {"norm": -WEIGHTS["norm"]}}, before)
    for after in (1, 2, 4, 5):
        for rank in range(after):
            state = StoredState(tmp_path, rank)
            for kind, name, value in (("weights", "matrix", WEIGHTS["matrix"]), ("exp_avg", "norm", -WEIGHTS["norm"])):
                mine = pieces(name, value, after, rank)
                expected = [one.values.clone() for one in mine]
                for one in mine:
                    one.values.fill_(9.0)
                state.fill(kind, mine)
                assert all(map(torch.equal, (one.values for one in mine), expected))


def test_a_rank_that_finds_all_in_its_own_file_opens_no_other(tmp_path: Path) -> None:
    write_state(tmp_path, {"weights": WEIGHTS}, 3)
    share_path(tmp_path, 1).write_bytes(b"unreadable")
    mine = pieces("matrix", torch.zeros(7, 3), 3, 2)
    StoredState(tmp_path, 2).fill("weights", mine)
    assert torch.equal(mine[0].values, WEIGHTS["matrix"].flatten()[14:])
    with pytest.raises(CheckpointError, match=r"rank_00001.*a readable file of a rank's state"):
        StoredState(tmp_path, 2).fill("weights", pieces("matrix", torch.zeros(7, 3), 2, 1))


def test_buffers_are_filled_and_others_left(tmp_path: Path) -> None:
    module = nn.Module()
    module.register_buffer("known", torch.zeros(2))
    module.register_buffer("other", torch.zeros(2))
    write_state(tmp_path, {}, 1, {"known": torch.ones(2)})
    StoredState(tmp_path).fill_buffers(module)
    assert module.state_dict()["known"].tolist() == [1, 1] and module.state_dict()["other"].tolist() == [0, 0]


def _fragment(name: str, shape: tuple[int, ...]) -> Fragment:
    return Fragment(name=name, shape=shape, start=0, values=torch.zeros(3))


@pytest.mark.parametrize(
    ("kind", "name", "shape", "told"),
    [
        ("weights", "matrix", (3, 7), r"expected weights of matrix, of shape \(3, 7\), got shape \(7, 3\)"),
        ("weights", "v", (7, 3), "expected weights of v, .* got nothing of that name"),
        ("exp_avg", "matrix", (7, 3), "expected exp_avg of matrix, .* got nothing of that name"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, kind: str, name: str, shape: tuple[int, ...], told: str) -> None:
    write_state(tmp_path, {"weights": WEIGHTS}, 2)
    with pytest.raises(CheckpointError, match=told):
        StoredState(tmp_path, 1).fill(kind, [_fragment(name, shape)])


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"files of ranks \(folder 'state'\), got none"):
        stored_weights(tmp_path)
    write_state(tmp_path, {"weights": WEIGHTS}, 3)
    with pytest.raises(CheckpointError, match="averaged weights, got none"):
        stored_average(tmp_path)
    share_path(tmp_path, 2).unlink()
    with pytest.raises(CheckpointError, match="the shares of 3 ranks, got 2 files"):
        stored_weights(tmp_path)
    write_state(tmp_path, {"weights": {"norm": WEIGHTS["norm"]}}, 3)
    fewer = {"weights": {"norm": WEIGHTS["norm"][:3]}}
    write_state(tmp_path / "other", fewer, 1)
    share_path(tmp_path / "other", 0).rename(share_path(tmp_path, 1))
    with pytest.raises(CheckpointError, match="all of norm, got gaps in its weights"):
        stored_weights(tmp_path)


class Harmful:
    """What a prepared file could hold: it makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("rank", [0, 1])
def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, rank: int) -> None:
    write_state(tmp_path, {"weights": WEIGHTS}, 2)
    torch.save({"state": Harmful(tmp_path / "made")}, tmp_path / "bait.pt")
    share_path(tmp_path, rank).write_bytes((tmp_path / "bait.pt").read_bytes())
    with pytest.raises(CheckpointError, match="a readable file of a rank's state"):
        stored_weights(tmp_path)
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "bait.pt", weights_only=False)
    assert (tmp_path / "made").exists(), "whoever unpickles it runs it"


def test_a_tensor_knows_its_size() -> None:
    parts: tuple[Tensor, ...] = (torch.arange(4.0), torch.arange(4.0, 6.0))
    stored = StoredTensor(shape=(2, 3), dtype=torch.float32, parts=parts)
    assert stored.num_elements == 6 and torch.equal(stored.whole(), torch.arange(6.0).view(2, 3))
