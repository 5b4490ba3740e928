"""Two real ranks without a launcher: one raises, stands still or is gone, and the other ends, and says why."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from cclm.data.loader import StepDataset
from cclm.engine.deepspeed.engine import DeepSpeedEngine
from cclm.errors import Cause, DataError
from cclm.run.causes import EXIT_CODES
from cclm.run.status import StatusRecord, read_status
from cclm.run.watch import STACKS_FOLDER
from cclm.train.program import run_program
from pretrain.__main__ import PROGRAM
from tests.ranks.spawn import PRELOAD, keep_port
from tests.tiny_run import recipe, write_corpus, write_recipe

pytestmark = pytest.mark.slow
FAULTY_STEP = 3
PATIENCE_S = 120.0


def _raise() -> None:
    raise DataError(reason="test", where="shard 7", expected="a picture", got="a poem", do="Draw it.")


def _stand_still() -> None:
    time.sleep(PATIENCE_S)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


PLACES: Mapping[str, tuple[Any, str, Callable[..., int]]] = {
    "the loader": (StepDataset, "__getitem__", lambda dataset, step: step),
    "forward": (DeepSpeedEngine, "forward", lambda engine, batch: batch.step),
}
FAULTS = {"raises": _raise, "stands still": _stand_still, "is gone": _stop}


def _rank(arguments: list[str], environment: dict[str, str], place: str, fault: str, run: Path) -> None:
    """Train; rank 1 with a fault, and after an error it stays, so that no closed connection tells rank 0 of its end."""
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    owner, name, step_of = PLACES[place]
    before = getattr(owner, name)

    def faulty(self: Any, given: Any) -> Any:
        if environment["RANK"] == "1" and step_of(self, given) == FAULTY_STEP:
            FAULTS[fault]()
        return before(self, given)

    with patch.object(owner, name, faulty):
        code = run_program(arguments, PROGRAM)
    until = time.monotonic() + PATIENCE_S
    while fault == "raises" and environment["RANK"] == "1" and time.monotonic() < until and not said(run, 0).cause:
        time.sleep(0.1)
    os._exit(code)


def said(run: Path, rank: int) -> StatusRecord:
    found = read_status(run / f"status/rank_{rank}.json")
    assert found is not None
    return found


def train(tmp_path: Path, place: str, fault: str, **watch: float) -> tuple[Path, list[int | None]]:
    """Start two ranks, and return the run folder and their exit codes; rank 1 is killed if it was stopped."""
    run, context = tmp_path / "run", multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD])
    changes = {"deepspeed": "zero3_cpu", "track": {"every_steps": 1, "tensorboard": False}, "watch": watch}
    path = write_recipe(tmp_path / "recipe.yaml", recipe(write_corpus(tmp_path), run, **changes))
    ranks, (keeper, port) = [], keep_port()
    with keeper:
        for rank in ("0", "1"):
            environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
            arguments = ["--recipe", str(path), "--data.num_workers", "0"]
            ranks.append(context.Process(target=_rank, args=(arguments, environment, place, fault, run)))
            ranks[-1].start()
        ranks[0].join(PATIENCE_S)
    if fault == "is gone":
        ranks[1].kill()
    ranks[1].join(PATIENCE_S)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
        rank.join()
    return run, codes


@pytest.mark.parametrize("place", ["the loader", pytest.param("forward", marks=pytest.mark.long)])
def test_a_rank_that_raises_ends_the_other_which_names_it(place: str, tmp_path: Path) -> None:
    run, codes = train(tmp_path, place, "raises")
    assert codes == [EXIT_CODES[Cause.ENDED], EXIT_CODES[Cause.USER_ERROR]]
    assert [said(run, rank).cause for rank in (0, 1)] == ["ended", "user_error"]
    assert "got rank 1 on " in said(run, 0).reason and "got a poem. Draw it." in said(run, 0).reason


def test_a_rank_that_stands_still_is_named_by_both_with_its_stack(tmp_path: Path) -> None:
    run, codes = train(tmp_path, "forward", "stands still", step_s=6.0, factor=1.0)
    assert codes == [EXIT_CODES[Cause.WAITING], EXIT_CODES[Cause.HUNG]] == [76, 76]
    assert [said(run, rank).cause for rank in (0, 1)] == ["waiting", "hung"]
    for rank in (0, 1):
        reason = said(run, rank).reason
        assert reason.startswith("rank 1 on ") and " stands in _stand_still (" in reason
        assert f"in step {FAULTY_STEP} since " in reason and "rank 0 on " in reason
        stack = (run / STACKS_FOLDER / f"rank_{rank}.txt").read_text()
        assert ("in _stand_still" in stack) == (rank == 1)
        recorded = json.loads((run / STACKS_FOLDER / f"rank_{rank}_collectives.json").read_text())
        assert any(one["entries"] for one in recorded.values())


def test_a_rank_that_is_gone_without_a_word_is_missed(tmp_path: Path) -> None:
    run, codes = train(tmp_path, "forward", "is gone", silent_s=12.0)
    assert codes == [EXIT_CODES[Cause.ENDED], -signal.SIGKILL]
    assert said(run, 0).cause == "ended"
    assert "got rank 1 on " in said(run, 0).reason and "no sign of it for " in said(run, 0).reason
