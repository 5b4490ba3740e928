from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch

from cclm.distributed.agreement import Request, agree_on_step, batch_structure, check_same_values
from cclm.distributed.collectives import SINGLE, collectives
from cclm.errors import ConfigError
from cclm.train.speed import Pace
from cclm.views.text_pair.view import TextPairBatch
from tests.ranks.harness import on_ranks
from tests.ranks.toy import joint_batch


def _check(what: str) -> str:
    talk = collectives()
    batch, step = joint_batch(4, talk.rank, talk.world_size), 4
    if talk.rank == 1:
        step += what == "step"
        if what == "view":
            batch = replace(batch, views={"image_text": batch.views["image_text"]})
    asked = {"asked": Request.STOP, "save": Request.SAVE, "writing": Request.WRITING}
    request = asked.get(what, Request.NOTHING) if talk.rank else Request.NOTHING
    known = {"bad steps": "1" if what == "bad steps" and talk.rank else "0"}
    try:
        return agree_on_step(talk, step, None if request is Request.STOP else batch, request, known).name
    except ConfigError as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", "NOTHING"),
        ("save", "SAVE"),
        ("writing", "WRITING"),
        ("step", "got step 4 on rank 0, 5 on rank 1."),
        ("view", "batch structure Batch(views={image_text=ImageTextBatch("),
        ("bad steps", "got bad steps 0 on rank 0, 1 on rank 1."),
        ("asked", "STOP"),
    ],
)
def test_disagreement_is_a_sentence_on_every_rank(what: str, message: str) -> None:
    texts = on_ranks(_check, 2, what)
    assert texts[0] == texts[1]
    assert message in texts[0]
    assert ("text_pair=" in texts[0]) == (what == "view")


def _compare(odd_rank: int) -> tuple[str, str]:
    """Blocks of a configuration, of which one rank has another optimizer."""
    talk = collectives()
    values = {"data": "aa", "optimizer": "bb" if talk.rank != odd_rank else "cc"}
    try:
        check_same_values(talk, values)
    except ConfigError as error:
        return error.got, error.where
    return "", ""


@pytest.mark.slow
def test_ranks_that_were_started_otherwise_are_named_with_the_block_that_differs() -> None:
    told = on_ranks(_compare, 3, 1)
    assert told == [("optimizer bb on ranks 0, 2, cc on rank 1", "agreement of ranks")] * 3
    assert on_ranks(_compare, 2, 7) == [("", "")] * 2


def _keep_pace() -> dict[str, float]:
    """Rank 1 comes two seconds late to its third step; rank 0 waits for its batches. By clocks of their own."""
    talk, now = collectives(), [0.0]
    pace = Pace(clock=lambda: now[0])
    for step in range(4):
        waits_s = (1.7 if step == 2 else 0.0, 0.0 if step == 2 else 0.3)
        with pace.fetching():
            now[0] += 0.3 if talk.rank == 0 else 0.0
        with pace.agreeing():
            agree_on_step(talk, step, None, Request.NOTHING, {"k": "v"}, figures=pace.own, hear=pace.hear)
            now[0] += waits_s[talk.rank]
    return pace.numbers()


@pytest.mark.slow
def test_ranks_learn_with_a_step_which_of_them_keeps_the_others_waiting() -> None:
    told = on_ranks(_keep_pace, 2)
    assert told[0] == told[1]
    assert (told[0]["speed/data_slowest_rank"], told[0]["speed/late_rank"]) == (0.0, 1.0)


def test_structure_is_types_and_dimensions_but_not_numbers_of_rows() -> None:
    batch = joint_batch(0, 0, 2)
    pairs = cast(TextPairBatch, batch.views["text_pair"])
    other = replace(pairs, noise_first_FG=pairs.noise_first_FG.half())
    assert batch_structure(batch) == batch_structure(joint_batch(1, 1, 2)) == batch_structure(joint_batch(0, 0, 1))
    assert batch_structure(batch) != batch_structure(replace(batch, views={**batch.views, "text_pair": other}))
    assert batch_structure({"a": torch.zeros(2), "b": 3}) == "{a=float32:1d, b=int}"


def test_one_process_always_agrees() -> None:
    for request in Request:
        assert agree_on_step(SINGLE, 0, object(), request) is request
    check_same_values(SINGLE, {"data": ""})
