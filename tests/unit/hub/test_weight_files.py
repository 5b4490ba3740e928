from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cclm.engine.stored_weights import StoredTensor
from cclm.errors import ConfigError
from cclm.hub.weight_files import (
    INDEX_NAME,
    in_memory,
    parse_size,
    write_weights,
)

STATE = {
    "words.weight": torch.randn(40, 7),
    "norm.bias": torch.randn(3),
    "temperature": torch.randn(1),
    "index": torch.arange(12).view(3, 4),
    "empty": torch.zeros(0, 5),
}


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard_bytes", [1, 700, 10**9])
def test_safetensors_reads_what_was_written(tmp_path: Path, dtype: str | None, shard_bytes: int) -> None:  # type: ignore[no-untyped-def]
    files = write_weights(in_memory(STATE), tmp_path, names=list(STATE), dtype=dtype, shard_bytes=shard_bytes)
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    found = {}
    for name in files:
        if name != INDEX_NAME:
            found.update(load_file(tmp_path / name))
    assert list(found) and found.keys() == STATE.keys()
    for name, value in STATE.items():
        wanted = getattr(torch, dtype) if dtype and value.is_floating_point() else value.dtype
        assert found[name].dtype == wanted and torch.equal(found[name], value.to(wanted)), name


def test_the_index_names_the_shard_of_every_tensor(tmp_path: Path) -> None:
    files = write_weights(in_memory(STATE), tmp_path, names=list(STATE), dtype="float16", shard_bytes=600)
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert files[:-1] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, "pt") as opened:
            assert name in opened.keys() and opened.metadata() == {"format": "pt"}  # noqa: SIM118
    assert index["metadata"] == {"total_parameters": 296, "total_size": 2 * 284 + 8 * 12}


def test_one_file_is_what_the_library_would_write(tmp_path: Path) -> None:
    state = {"b": torch.randn(5, 3), "a": torch.randn(8)}
    save_file(state, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    write_weights(in_memory(state), tmp_path, names=["a", "b"], dtype=None, shard_bytes=10**9)
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_a_tensor_in_parts_is_written_whole(tmp_path: Path) -> None:
    flat = torch.arange(21.0)
    stored = StoredTensor(shape=(3, 7), dtype=torch.float32, parts=(flat[:9], flat[9:10], flat[10:]))
    assert torch.equal(stored.whole(), flat.view(3, 7))
    write_weights(lambda: {"x": stored}, tmp_path, names=["x"], dtype=None, shard_bytes=10**9)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["x"], flat.view(3, 7))


def test_the_source_is_opened_anew_for_each_shard_and_after_many_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def source() -> dict[str, StoredTensor]:
        opened.append(1)
        return dict(in_memory(STATE)())

    write_weights(source, tmp_path, names=list(STATE), dtype=None, shard_bytes=1)
    assert len(opened) == 1 + len(STATE)
    opened.clear()
    monkeypatch.setattr("cclm.hub.weight_files.REOPEN_BYTES", 1000)
    write_weights(source, tmp_path, names=list(STATE), dtype=None, shard_bytes=10**9)
    assert len(opened) == 3, "the words alone are 1120 bytes"
    assert load_file(tmp_path / "model.safetensors").keys() == STATE.keys()


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("2GiB", 2**31), ("4096", 4096), ("7kb", 7000)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-5GB", "0", "5 apples"])
def test_a_size_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="a size such as 500MB, 5GB or 2GiB"):
        parse_size(text)
