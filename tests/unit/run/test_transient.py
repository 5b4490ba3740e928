from __future__ import annotations

import errno
import os

import pytest

from cclm.run.causes import WAITS_S, retried


class Action:
    """Fails in these ways, then works."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def fault(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_faults_that_pass_are_tried_again_with_growing_pauses() -> None:
    waits: list[float] = []
    action = Action(fault(errno.EIO), fault(errno.ESTALE), TimeoutError())
    assert retried(action, sleep=waits.append) == "done"
    assert waits == list(WAITS_S) == sorted(waits)


def test_a_fault_that_lasts_is_raised() -> None:
    action = Action(*[fault(errno.EIO)] * 9)
    with pytest.raises(OSError, match="Input/output error"):
        retried(action, sleep=lambda _: None)
    assert action.calls == len(WAITS_S) + 1


@pytest.mark.parametrize("error", [fault(errno.ENOSPC), fault(errno.ENOENT), ValueError("no")])
def test_anything_else_is_raised_at_once(error: Exception) -> None:
    action = Action(error)
    with pytest.raises(type(error)):
        retried(action, sleep=lambda _: pytest.fail("no pause"))
    assert action.calls == 1
