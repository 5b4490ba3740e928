"""Layouts of DeepSpeed's files, made by hand; real ones are in tests/ranks/test_checkpoint.py."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cclm.engine.stored_weights import STATE_FILE, StoredTensor, stored_weights
from cclm.errors import CheckpointError

RANKS = 3
STATE = {
    "words": torch.randn(5, 4),
    "bias": torch.randn(1),
    "matrix": torch.randn(7, 3),
    "norm": torch.randn(8),
}
GROUPS = (("words", "matrix"), ("bias", "norm"))


def write_models(folder: Path, number: int, **more: Any) -> None:
    shapes = [{name: STATE[name].shape for name in group} for group in GROUPS]
    for rank in range(number):
        content = {"module": {}, "buffer_names": [], "param_shapes": shapes, "shared_params": {"head": "words"}, **more}
        torch.save(content, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")


def write_shares(folder: Path, shares: list[dict[str, Any]], **more: Any) -> None:
    for rank, share in enumerate(shares):
        content = {"optimizer_state_dict": {"partition_count": RANKS, **share, **more}}
        torch.save(content, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def stage_3(group_length: int = 1000) -> list[dict[str, Any]]:
    """Every parameter cut into three, the last piece padded; a rank's row cut again into groups of a length."""
    rows: list[list[Tensor]] = [[] for _ in range(RANKS)]
    for group in GROUPS:
        for name in group:
            size = math.ceil(STATE[name].numel() / RANKS)
            flat = torch.full((size * RANKS,), float("nan"))
            flat[: STATE[name].numel()] = STATE[name].flatten()
            for row, piece in zip(rows, flat.split(size), strict=True):
                row.append(piece)
    return [{"fp32_flat_groups": list(torch.cat(row).split(group_length))} for row in rows]


def stage_2(alignment: int) -> list[dict[str, Any]]:
    """All of a group in a row with paddings, the row cut into three."""
    by_rank: list[list[Tensor]] = [[] for _ in range(RANKS)]
    paddings = []
    for group in GROUPS:
        padding = [-STATE[name].numel() % alignment for name in group]
        row = torch.cat(
            [torch.cat([STATE[name].flatten(), torch.zeros(n)]) for name, n in zip(group, padding, strict=True)]
        )
        row = torch.cat([row, torch.zeros(-len(row) % RANKS)])
        for rank, piece in enumerate(row.chunk(RANKS)):
            by_rank[rank].append(piece.clone())
        paddings.append(padding)
    more = {"param_alignment_paddings": paddings} if alignment > 1 else {}
    return [{"single_partition_of_fp32_groups": pieces, **more} for pieces in by_rank]


def expect_state(found: dict[str, StoredTensor]) -> None:
    assert found.keys() == {*STATE, "head"} and found["head"] is found["words"]
    for name, value in STATE.items():
        assert found[name].shape == tuple(value.shape) and torch.equal(found[name].whole(), value), name
        pieces = list(found[name].pieces(3))
        assert torch.equal(torch.cat(pieces), value.flatten()) and max(map(len, pieces)) <= 3


@pytest.mark.parametrize(
    "shares", [stage_3(), stage_3(4), stage_2(1), stage_2(4)], ids=["3", "3 groups", "2", "2 aligned"]
)
def test_every_layout_gives_the_weights(tmp_path: Path, shares: list[dict[str, Any]]) -> None:
    folder = tmp_path / "deepspeed"
    folder.mkdir()
    write_models(folder, RANKS)
    write_shares(folder, shares)
    expect_state(stored_weights(tmp_path))


def test_frozen_parameters_and_buffers_come_along(tmp_path: Path) -> None:
    folder = tmp_path / "deepspeed"
    folder.mkdir()
    frozen = torch.arange(6.0)
    buffer = torch.arange(3)
    more = {"module": {"count": buffer}, "buffer_names": ["count"], "frozen_param_shapes": {"fixed": torch.Size([5])}}
    write_models(folder, RANKS, **more)
    for rank, part in enumerate(frozen.split(2)):
        path = folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
        content = torch.load(path, weights_only=False)
        torch.save({**content, "frozen_param_fragments": {"fixed": part.clone()}}, path)
    write_shares(folder, stage_3())
    found = stored_weights(tmp_path)
    assert torch.equal(found["fixed"].whole(), frozen[:5]) and torch.equal(found["count"].whole(), buffer)


def test_a_missing_rank_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "deepspeed"
    folder.mkdir()
    write_models(folder, RANKS)
    write_shares(folder, stage_3()[:2])
    with pytest.raises(CheckpointError, match="expected the shares of 3 ranks, got 2 files"):
        stored_weights(tmp_path)
    write_shares(folder, [{"other": 1} for _ in range(RANKS)])
    with pytest.raises(CheckpointError, match="fp32 weights of a ZeRO stage, got only partition_count, other"):
        stored_weights(tmp_path)


class Harmful:
    """What a prepared file could hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["STORED_WEIGHTS_TEST"],)


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORED_WEIGHTS_TEST", str(tmp_path / "made"))
    folder = tmp_path / "deepspeed"
    folder.mkdir()
    write_models(folder, RANKS, client_state=Harmful())
    write_shares(folder, stage_3(), loss_scaler=Harmful())
    expect_state(stored_weights(tmp_path))
    assert not (tmp_path / "made").exists()


def test_the_plain_engines_file_is_whole(tmp_path: Path) -> None:
    torch.save({"module": STATE, "optimizer": {}, "client_state": {}}, tmp_path / STATE_FILE)
    found = stored_weights(tmp_path)
    assert all(torch.equal(found[name].whole(), value) for name, value in STATE.items())
