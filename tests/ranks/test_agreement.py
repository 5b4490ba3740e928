from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cclm.distributed.agreement import batch_structure, check_same_step, check_same_values
from cclm.distributed.collectives import SINGLE, collectives
from cclm.errors import ConfigError
from tests.ranks.harness import on_ranks
from tests.ranks.toy import joint_batch


def _check(what: str) -> str:
    talk = collectives()
    batch, step = joint_batch(4, talk.rank, talk.world_size), 4
    if talk.rank == 1:
        step += what == "step"
        if what == "view":
            batch = replace(batch, text_pair=None)
        if what == "rows":
            batch = joint_batch(4, 0, 1)
    try:
        check_same_step(talk, step, batch)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", ""),
        ("step", "got step 4 on rank 0, 5 on rank 1."),
        ("view", "text_pair=NoneType"),
        ("rows", "images_BCHW=float32:4d:8rows"),
    ],
)
def test_disagreement_is_a_sentence_on_every_rank(what: str, message: str) -> None:
    texts = on_ranks(_check, 2, what, timeout_s=60.0)
    assert texts[0] == texts[1]
    assert message in texts[0]
    assert bool(texts[0]) == (what != "nothing")


def _compare(odd_rank: int) -> tuple[str, str]:
    """Blocks of a configuration, of which one rank has another optimizer."""
    talk = collectives()
    values = {"data": "aa", "optimizer": "bb" if talk.rank != odd_rank else "cc"}
    try:
        check_same_values(talk, values)
    except ConfigError as error:
        return error.got, error.where
    return "", ""


def test_ranks_that_were_started_otherwise_are_named_with_the_block_that_differs() -> None:
    told = on_ranks(_compare, 3, 1, timeout_s=60.0)
    assert told == [("optimizer bb on ranks 0, 2, cc on rank 1", "agreement of ranks")] * 3
    assert on_ranks(_compare, 2, 7, timeout_s=60.0) == [("", "")] * 2


def test_structure_counts_samples_but_not_tokens() -> None:
    batch = joint_batch(0, 0, 2)
    assert batch.text_pair is not None
    assert batch_structure(batch) == batch_structure(joint_batch(1, 1, 2))  # another number of masked slots
    assert batch_structure(batch) != batch_structure(joint_batch(0, 0, 1))  # another number of samples
    assert batch_structure(batch, equal_rows=False) == batch_structure(joint_batch(0, 0, 1), equal_rows=False)
    longer = replace(batch.text_pair, text=replace(batch.text_pair.text, ids_BL=torch.zeros(9, 20, dtype=torch.long)))
    assert batch_structure(replace(batch, text_pair=longer)) == batch_structure(batch)
    fewer = replace(batch.text_pair, first_P=batch.text_pair.first_P[:-1])
    assert batch_structure(replace(batch, text_pair=fewer)) != batch_structure(batch)
    halves = replace(batch.text_pair, noise_first_FG=batch.text_pair.noise_first_FG.half())
    assert batch_structure(replace(batch, text_pair=halves)) != batch_structure(batch)
    assert batch_structure({"a": torch.zeros(2), "b": 3}) == "{a=float32:1d, b=int}"


def test_one_process_always_agrees() -> None:
    check_same_step(SINGLE, 0, object())
    check_same_values(SINGLE, {"data": ""})
