from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cclm.errors import CheckpointError
from cclm.hub import export as module
from cclm.hub.export import Weights
from cclm.hub.import_folder import folder_source, import_export, stored_dtype
from cclm.hub.open import OpenedModel, Prepared, prepare_export
from cclm.hub.reference_outputs import ReferenceOutputs
from cclm.hub.weight_files import INDEX_NAME, Dtype, Source
from tests.unit.hub.test_hub_folder import write


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_weights_bit_by_bit(
    opened: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Dtype
) -> None:
    """With the answers of the reference for those of the fresh process, which the tests of exports start."""
    references: list[ReferenceOutputs] = []
    real = module.reference_for

    def remember(prepared: Prepared, source: Source, scratch: Path, weights: Weights) -> ReferenceOutputs:
        references.append(real(prepared, source, scratch, weights))
        return references[-1]

    monkeypatch.setattr(module, "reference_for", remember)
    monkeypatch.setattr("cclm.hub.parity.outputs_of_clean_process", lambda *_: [references[-1].outputs])
    first, second = tmp_path / "first", tmp_path / "second"
    write(opened, first, dtype, shard_bytes=6000)
    (first / "README.md").write_text("# A model\n")
    report = import_export(first, second)
    before, after = stored(first), stored(second)
    assert before.keys() == after.keys() and (first / INDEX_NAME).exists()
    for name, value in before.items():
        assert value.dtype == after[name].dtype == getattr(torch, dtype)
        assert torch.equal(value.view(torch.uint8), after[name].view(torch.uint8)), name
    assert report.dtype == dtype and report.failures == []
    configs = [json.loads((folder / "config.json").read_text()) for folder in (first, second)]
    assert configs[0] == configs[1]
    texts = ["a red car", "  Two  spaces"]
    ours, theirs = (prepare_export(folder) for folder in (first, second))
    assert ours.tokenizer.encode(texts, 20) == theirs.tokenizer.encode(texts, 20)
    assert (ours.transform, ours.max_tokens) == (theirs.transform, theirs.max_tokens)
    card = (second / "README.md").read_text()
    assert card.startswith("# A model\n") and "Written anew by `cclm import`" in card


def test_folders_that_are_not_whole_are_refused(opened: OpenedModel, tmp_path: Path) -> None:
    write(opened, tmp_path / "out", shard_bytes=6000)
    next((tmp_path / "out").glob("model-00002*")).unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-.*nothing at this path"):
        folder_source(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="expected a complete export of this version"):
        prepare_export(tmp_path / "empty")
    save_file({"a": torch.zeros(1), "b": torch.zeros(1).half()}, tmp_path / "empty" / "model.safetensors")
    with pytest.raises(CheckpointError, match="got float16, float32"):
        stored_dtype(folder_source(tmp_path / "empty")())
