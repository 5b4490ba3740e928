"""Mapped weights leave memory when their module has run, and nothing else changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cclm.hub.mapped_pages import drop_pages_after_use, mapped_files, pages_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
WIDTH = 1024


def mapped_model(path: Path) -> nn.Sequential:
    """Two linear layers whose weights are mapped from a file."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(path, mmap=True, weights_only=True), assign=True)
    return model.eval()


def resident_bytes(tensor: torch.Tensor) -> int:
    """What the kernel counts as resident of the mapping that holds a tensor."""
    place, inside = tensor.data_ptr(), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(text, 16) for text in first.split("-"))
            inside = start <= place < end
        elif inside and first == "Rss:":
            return 1024 * int(line.split()[1])
    raise AssertionError("no mapping holds the tensor")


def test_pages_are_gone_and_values_are_the_same(tmp_path: Path) -> None:
    model = mapped_model(tmp_path / "weights.pt")
    inputs = torch.randn(3, WIDTH)
    with torch.no_grad():
        expected = model(inputs)
        held = resident_bytes(model[0].weight)
        assert drop_pages_after_use(model) >= 2 * 4 * WIDTH * WIDTH
        torch.testing.assert_close(model(inputs), expected, rtol=0, atol=0)
        assert resident_bytes(model[0].weight) < held / 4
        torch.testing.assert_close(model(inputs), expected, rtol=0, atol=0)


def test_what_lies_in_memory_alone_is_left_alone() -> None:
    """Dropped, it would come back as zeros."""
    model = nn.Linear(WIDTH, WIDTH)
    before = model.weight.detach().clone()
    assert drop_pages_after_use(model) == 0
    with torch.no_grad():
        model(torch.randn(2, WIDTH))
    assert torch.equal(model.weight, before)


def test_a_part_of_a_mapped_tensor_is_found(tmp_path: Path) -> None:
    weight = mapped_model(tmp_path / "weights.pt")[0].weight.detach()
    files = mapped_files()
    whole, part = pages_of(weight, files), pages_of(weight[512:], files)
    assert whole is not None and part is not None
    assert whole[0] < part[0] and part[1] == whole[1]
    assert pages_of(torch.ones(WIDTH), files) is None
    assert pages_of(torch.ones(0), files) is None
    assert pages_of(weight.to("meta"), files) is None


def test_training_keeps_its_pages(tmp_path: Path) -> None:
    model = mapped_model(tmp_path / "weights.pt")
    drop_pages_after_use(model)
    model(torch.randn(2, WIDTH)).sum().backward()
    assert resident_bytes(model[0].weight) >= 4 * WIDTH * WIDTH
