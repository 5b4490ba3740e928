"""Our streaming writer of safetensors files; the library's own reader is the twin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cclm.engine import fragments
from cclm.engine.fragments import Planned, write_tensors


def test_the_library_reads_what_we_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragments, "PIECE_ELEMENTS", 4)  # tensors are cut, within rows, too
    values = {
        "matrix": torch.randn(3, 5),
        "transposed": torch.randn(5, 3).T,
        "rough": torch.randn(7).bfloat16(),
        "count": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 2),
    }
    layout = [Planned(name=name, shape=tuple(value.shape), dtype=value.dtype) for name, value in values.items()]
    path = tmp_path / "a.safetensors"
    write_tensors(path, layout, [[value] for value in values.values()], {"format": "pt", "note": "ü"})
    found = load_file(path)
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "ü"}


def test_pieces_are_put_together_and_converted(tmp_path: Path) -> None:
    path, pieces = tmp_path / "a.safetensors", [torch.arange(3.0).bfloat16(), torch.arange(3.0, 7.0).bfloat16()]
    write_tensors(path, [Planned(name="x", shape=(7,), dtype=torch.float32)], [pieces], {})
    assert torch.equal(load_file(path)["x"], torch.arange(7.0))


def test_pieces_of_another_size_than_planned_are_our_bug(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="another size"):
        plan = [Planned(name="x", shape=(3,), dtype=torch.float32)]
        write_tensors(tmp_path / "a.safetensors", plan, [[torch.zeros(2)]], {})
