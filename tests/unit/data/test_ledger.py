from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cclm.data.ledger import START, LedgerFile, chain, hash64, identity_hash, sample_hash, step_sum, verify_ledger
from cclm.errors import CheckpointError

hashes = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20)


def test_every_part_of_a_sample_matters() -> None:
    samples = [("a", "b", "c"), ("a", "bc", ""), ("ab", "", "c"), ("a", "b", "d"), ("x", "b", "c")]
    assert len({sample_hash(*sample) for sample in samples}) == 5
    assert sample_hash("a", "b", "c") == sample_hash("a", "b", "c") == hash64("sample", "a", "b", "c")


def test_hashes_fit_into_tensors() -> None:
    values = [sample_hash("s", str(number), "0") for number in range(200)]
    assert torch.tensor(values).tolist() == values
    assert min(values) < 0 < max(values)
    identities = [identity_hash(str(number)) for number in range(200)]
    assert min(identities) >= 0 and max(identities) < 2**63 and len(set(identities)) == 200


def test_half_a_character_is_hashed_too() -> None:
    assert hash64("\ud800") != hash64("?")


@given(first=hashes, second=hashes)
def test_sums_add_up_over_ranks_as_torch_adds(first: list[int], second: list[int]) -> None:
    whole = step_sum(np.array(first + second, dtype=np.int64))
    parts = np.array([step_sum(np.array(part, dtype=np.int64)) for part in (second, first)])
    assert step_sum(parts) == whole
    assert int(torch.tensor(first + second, dtype=torch.int64).sum()) == whole


def write(path: Path, steps: range, *, next_step: int = 0) -> LedgerFile:
    ledger = LedgerFile(path, next_step)
    for step in steps:
        ledger.append(step, {"image_text": step * 11, "text_pair": -step})
    return ledger


def test_the_chain_speaks_for_all_steps(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = write(path, range(4))
    value = START
    for step in range(4):
        value = chain(value, step, {"text_pair": -step, "image_text": step * 11})
    assert ledger.hash == value == verify_ledger(path)
    first = json.loads(path.read_text().splitlines()[1])
    assert first == {"step": 1, "sums": {"image_text": 11, "text_pair": -1}, "hash": first["hash"]}
    assert chain(START, 0, {"a": 1}) != chain(START, 1, {"a": 1}) != chain(START, 0, {"a": 2})


def test_a_resumed_run_continues_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    write(whole, range(8))
    write(killed, range(6))
    with killed.open("a") as stream:
        stream.write('{"step":6,"su')  # killed while writing
    write(killed, range(3, 8), next_step=3)
    assert killed.read_bytes() == whole.read_bytes()


def test_a_ledger_that_lacks_steps_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path, range(3))
    with pytest.raises(CheckpointError, match="a ledger that ends with step 4, got one that ends with step 2"):
        LedgerFile(path, 5)
    with pytest.raises(CheckpointError, match="an empty one"):
        LedgerFile(tmp_path / "other.jsonl", 5)


def test_an_edited_ledger_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path, range(5))
    path.write_text(path.read_text().replace('"image_text":22', '"image_text":23'))
    with pytest.raises(CheckpointError, match=r"ledger.jsonl:3: expected step 2"):
        verify_ledger(path)


def test_steps_come_in_order(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="expects step 0"):
        LedgerFile(tmp_path / "ledger.jsonl").append(1, {})
