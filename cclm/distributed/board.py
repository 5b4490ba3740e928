"""The store in which the ranks met, as the board of their watches; and what torch has recorded of collectives."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as torch_dist
from torch._C import _distributed_c10d as c10d
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not re-exported

ANSWER_S = 10.0
DUMPS = ("_dump_nccl_trace_json", "_dump_fr_trace_json")
"""Torch's flight recorder, by the names that its versions have: NCCL's collectives, and those of all backends."""


class StoreBoard:
    """`cclm.run.talk.Board` over torch's store, by a connection of its own: torch's waits hold the other one."""

    def __init__(self, store: TCPStore, prefix: str) -> None:
        timeout = timedelta(seconds=ANSWER_S)
        own = TCPStore(store.host, store.port, is_master=False, timeout=timeout, wait_for_workers=False)
        self._store = PrefixStore(prefix, own)

    def put(self, name: str, text: str) -> None:
        """Let a text stand there."""
        with _gone():
            self._store.set(name, text)

    def claim(self, name: str, text: str) -> str:
        """Put it unless something stands there already; return what stands there."""
        with _gone():
            return self._store.compare_set(name, "", text).decode()

    def get(self, names: Sequence[str]) -> list[str]:
        """Return the texts; "" where nothing stands: to ask for that would wait."""
        with _gone():
            if self._store.check(list(names)):
                return [text.decode() for text in self._store.multi_get(list(names))]
            return [self._store.get(name).decode() if self._store.check([name]) else "" for name in names]


@contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except torch_dist.DistError as error:
        raise ConnectionError(str(error)) from error


def write_recorded_collectives(path: Path) -> str:
    """Write what torch's flight recorder holds, where there is one; return the last collective in words, or "". A
    thread does it, for which nobody waits long: it may have to ask a GPU that does not answer."""
    last = list[str]()
    thread = threading.Thread(target=lambda: last.append(_write_recorded(path)), name="flight recorder", daemon=True)
    thread.start()
    thread.join(ANSWER_S / 2)
    return last[0] if last else ""


def _write_recorded(path: Path) -> str:
    found = {name: json.loads(dump(True, False)) for name in DUMPS if (dump := getattr(c10d, name, None)) is not None}
    entries: list[dict[str, Any]] = [entry for one in found.values() for entry in one.get("entries", [])]
    if not entries:
        return ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found), encoding="utf-8")
    last = max(entries, key=lambda entry: entry.get("time_created_ns", 0))
    return f"{last.get('profiling_name')} {last.get('collective_seq_id')} of {'/'.join(last.get('process_group', []))}"
