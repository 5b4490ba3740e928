from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cclm.errors import CheckpointError
from cclm.pretrained.source_files import read_tensors, unwrap

STATE = {"temp": torch.tensor(0.07), "text_proj.weight": torch.arange(6.0).view(2, 3)}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model": STATE, "config": {"image_res": 224, "train_file": ["a", "b"]}},
        {"state_dict": {f"module.{name}": value for name, value in STATE.items()}, "epoch": 3},
        {"model": {"state_dict": STATE}},
    ],
)
def test_both_containers_bare_and_wrapped(tmp_path: Path, content: object, zipped: bool) -> None:
    path = tmp_path / "model_state_epoch_29.th"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    state = read_tensors(path)
    assert state.keys() == STATE.keys()
    assert all(torch.equal(value, STATE[name]) for name, value in state.items())


def test_safetensors_too(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.safetensors")
    assert read_tensors(tmp_path / "weights.safetensors").keys() == STATE.keys()


def test_a_name_that_only_looks_wrapped_stays() -> None:
    assert unwrap({"module.a": torch.zeros(1), "b": torch.zeros(1)}).keys() == {"module.a", "b"}
    assert unwrap(3) == {}


def test_a_missing_file_and_one_without_tensors_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a file of weights .* got nothing at this path"):
        read_tensors(tmp_path / "none.th")
    torch.save({"epoch": 3}, tmp_path / "empty.th")
    with pytest.raises(CheckpointError, match="got a dict without tensors"):
        read_tensors(tmp_path / "empty.th")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": STATE, "config": argparse.Namespace(lr=1)}, tmp_path / "code.th")
    with pytest.raises(CheckpointError, match="save its state dict alone with torch"):
        read_tensors(tmp_path / "code.th")
    (tmp_path / "noise.th").write_bytes(b"not a pickle at all")
    with pytest.raises(CheckpointError, match="Download it again"):
        read_tensors(tmp_path / "noise.th")
    (tmp_path / "noise.safetensors").write_bytes(b"no header at all")
    with pytest.raises(CheckpointError, match="Download it again"):
        read_tensors(tmp_path / "noise.safetensors")
