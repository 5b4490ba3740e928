"""Many URLs at once, few from one host: who may be asked next."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from shards.download.fetcher import Fetched, origin_of


def fetch_in_turns(
    urls: Sequence[str],
    fetch: Callable[[str], Fetched],
    delay_s: Callable[[str], float],
    *,
    pool: ThreadPoolExecutor,
    threads: int,
    per_host: int,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[int, Fetched]]:
    """Yield (position in `urls`, what became of it) as they finish; hosts take turns.

    Args:
        urls: what to fetch.
        fetch: fetches one.
        delay_s: origin -> seconds between the starts of two requests to it.
        pool: its threads.
        threads: how many requests there are at once.
        per_host: how many of them go to one origin.
        clock: seconds.
    """
    waiting: dict[str, deque[int]] = {}
    for position, url in enumerate(urls):
        waiting.setdefault(origin_of(url), deque()).append(position)
    running: dict[Future[Fetched], tuple[int, str]] = {}
    busy: Counter[str] = Counter()
    next_start: dict[str, float] = {}
    while waiting or running:
        now, soonest = clock(), None
        for origin in list(waiting):
            while (
                len(running) < threads
                and waiting.get(origin)
                and busy[origin] < per_host
                and next_start.get(origin, now) <= now
            ):
                position = waiting[origin].popleft()
                running[pool.submit(fetch, urls[position])] = (position, origin)
                busy[origin] += 1
                next_start[origin] = now + delay_s(origin)
                if not waiting[origin]:
                    del waiting[origin]
            if waiting.get(origin) and busy[origin] < per_host and next_start.get(origin, 0.0) > now:
                soonest = min(soonest or next_start[origin], next_start[origin])
        pause_s = None if soonest is None else max(0.0, soonest - now)
        if not running:
            time.sleep(pause_s or 0.0)
            continue
        for future in wait(running, timeout=pause_s, return_when=FIRST_COMPLETED).done:
            position, origin = running.pop(future)
            busy[origin] -= 1
            yield position, future.result()
