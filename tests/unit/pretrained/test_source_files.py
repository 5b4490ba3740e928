from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from cclm.errors import CheckpointError
from cclm.pretrained.source_files import open_source

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for a model on the hub; what is not asked for does not come."""
    away, here = tmp_path / "away", tmp_path / "here"
    away.mkdir()
    here.mkdir()

    def download(name: str, allow_patterns: list[str]) -> str:
        assert name == "some/model"
        for path in away.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                (here / path.name).write_bytes(path.read_bytes())
        return str(here)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return away


def test_only_the_newest_form_of_a_named_models_weights_is_fetched(hub: Path, tmp_path: Path) -> None:
    save_file(TENSORS, hub / "model.safetensors")
    (hub / "pytorch_model.bin").write_bytes(b"never read")
    torch.testing.assert_close(dict(open_source("some/model")), TENSORS)
    assert not (tmp_path / "here" / "pytorch_model.bin").exists()


def test_a_named_model_may_have_the_old_form_only(hub: Path) -> None:
    torch.save(TENSORS, hub / "pytorch_model.bin")
    torch.testing.assert_close(dict(open_source("some/model")), TENSORS)


def test_a_named_model_in_old_parts(hub: Path) -> None:
    torch.save(TENSORS, hub / "pytorch_model-00001-of-00001.bin")
    index = '{"weight_map": {"a.weight": "pytorch_model-00001-of-00001.bin"}}'
    (hub / "pytorch_model.bin.index.json").write_text(index)
    torch.testing.assert_close(dict(open_source("some/model")), TENSORS)


def test_a_named_model_without_weights_is_refused(hub: Path) -> None:
    (hub / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"expected model.safetensors or pytorch_model.bin, got a folder without"):
        open_source("some/model")
