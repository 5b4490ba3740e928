"""One rank's file of the training state."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cclm.engine import fragments
from cclm.engine.fragments import Fragment, ShareFacts, aliases_of, buffers_of, share_file, share_path
from cclm.engine.stored_weights import StoredState
from cclm.run import causes
from tests.unit.engine.state_files import write_state


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(3, 2), nn.Linear(2, 3)
        self.head.weight = self.words.weight
        self.register_buffer("seen", torch.tensor(4))
        self.register_buffer("mask", torch.ones(2), persistent=False)


def test_shared_parameters_have_a_first_name_and_aliases() -> None:
    assert aliases_of(Module()) == {"head.weight": "words.weight"}


def test_buffers_that_are_made_anew_are_left_out() -> None:
    assert buffers_of(Module()) == {"seen": torch.tensor(4)}


def test_facts_come_back_as_they_were(tmp_path: Path) -> None:
    state = {"step": 3, "state": {"seconds": 0.1 + 0.2, "names": ["a", None], "seen": {"image_text/en": 2**60}}}
    facts: dict[str, Any] = {"updates": 5, "average_updates": 4, "counters": {"global_steps": 9}, "client_state": state}
    found = StoredState(write_state(tmp_path, {"weights": {"w": torch.ones(2)}}, 2, **facts)).facts
    assert {name: getattr(found, name) for name in facts} == facts


def _one(path: Path) -> None:
    fragment = Fragment(name="w", shape=(2,), start=0, values=torch.ones(2))
    share_file(ShareFacts(world_size=1), {"weights": [fragment]}, {}).write(path)


def test_a_fault_that_passes_is_met_by_writing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, codes = fragments.write_tensors, [errno.EIO, errno.ESTALE]

    def write_or_fail(path: Path, *arguments: Any) -> None:
        if codes:
            path.write_bytes(b"half")
            raise OSError(codes.pop(), os.strerror(errno.EIO))
        write(path, *arguments)

    monkeypatch.setattr(fragments, "write_tensors", write_or_fail)
    monkeypatch.setattr(causes, "WAITS_S", (0.0, 0.0))
    _one(share_path(tmp_path, 0))
    assert StoredState(tmp_path).tensors("weights")["w"].whole().tolist() == [1.0, 1.0]


def test_a_full_disk_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Path] = []

    def fail(path: Path, *_: Any) -> None:
        tries.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fragments, "write_tensors", fail)
    with pytest.raises(OSError, match="No space left"):
        _one(share_path(tmp_path, 0))
    assert len(tries) == 1
