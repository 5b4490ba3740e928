from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cclm.distributed.agreement import batch_structure, check_agreement
from cclm.distributed.collectives import SINGLE, collectives
from cclm.errors import ConfigError
from tests.ranks.harness import on_ranks
from tests.ranks.toy import joint_batch


def _check(what: str) -> str:
    talk = collectives()
    batch = joint_batch(4, talk.rank, talk.world_size)
    step, config_hash = 4, "abc"
    if talk.rank == 1:
        step += what == "step"
        config_hash += "d" * (what == "config")
        if what == "view":
            batch = replace(batch, text_pair=None)
        if what == "rows":
            batch = joint_batch(4, 0, 1)
    try:
        check_agreement(talk, step=step, config_hash=config_hash, batch=batch)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", ""),
        ("step", "got step 4 on rank 0, 5 on rank 1."),
        ("config", "got config hash abc on rank 0, abcd on rank 1."),
        ("view", "text_pair=NoneType"),
        ("rows", "images_BCHW=float32:4d:8rows"),
    ],
)
def test_disagreement_is_a_sentence_on_every_rank(what: str, message: str) -> None:
    texts = on_ranks(_check, 2, what, timeout_s=20.0)
    assert texts[0] == texts[1]
    assert message in texts[0]
    assert bool(texts[0]) == (what != "nothing")


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
    check_agreement(SINGLE, step=0, config_hash="", batch=object())
