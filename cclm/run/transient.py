"""Try again what a passing fault of disk, network or file server broke, where doing it twice does no harm."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from cclm.errors import Cause
from cclm.run.causes import cause_of

ResultType = TypeVar("ResultType")
WAITS_S = (0.5, 2.0, 8.0)
"""Before the second, third and fourth try: a restarted file server is back within seconds; a lost one takes the next
attempt of the job, which costs less than ranks that wait here."""


def retried(action: Callable[[], ResultType], *, sleep: Callable[[float], None] = time.sleep) -> ResultType:
    """Return `action()`, called again after errors whose cause is transient; the last try's error is raised."""
    for wait_s in WAITS_S:
        try:
            return action()
        except Exception as error:
            if cause_of(error) is not Cause.TRANSIENT:
                raise
        sleep(wait_s)
    return action()
