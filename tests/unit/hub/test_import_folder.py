from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cclm.cli.__main__ import main
from cclm.data.tokens import load_tokenizer
from cclm.errors import CheckpointError
from cclm.hub.export import REPLACED, staging_directory
from cclm.hub.import_folder import REPORT_NAME, import_file
from cclm.hub.open import open_model
from cclm.model.modeling_cclm import CCLMModel
from cclm.pretrained.import_cclm import stored_tensors
from tests.kinds import with_vocabulary
from tests.left_to_long import left_to_slow
from tests.tiny_families import TINY, published_state, wavy_model
from tests.unit.hub.test_finetuned_files import TASKS, file_of, outputs
from tests.unit.pretrained.test_import_cclm import retrieval_state


def write_file(path: Path, layout: str) -> CCLMModel:
    model = wavy_model(TINY[layout])
    torch.save({"model": published_state(model), "config": {"image_res": 32}}, path)
    return model


@pytest.mark.parametrize("layout", left_to_slow(TINY, "beit"))
def test_a_folder_without_masked_lm_head_loads(tmp_path: Path, layout: str) -> None:
    torch.save(retrieval_state(layout), tmp_path / "checkpoint_best.pth")
    imported = import_file(tmp_path / "checkpoint_best.pth", tmp_path / "out", text_heads=2)
    loaded = CCLMModel.from_pretrained(tmp_path / "out").eval()
    assert loaded.config.options() == imported.options
    assert not any(name.startswith("masked_lm") for name in loaded.state_dict())
    expected = wavy_model(TINY[layout]).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("layout", left_to_slow(TINY, "swin"))
def test_the_folder_holds_the_same_weights(tmp_path: Path, layout: str) -> None:
    model = write_file(tmp_path / "a.th", layout)
    imported = import_file(tmp_path / "a.th", tmp_path / "out", text_heads=2)
    loaded = CCLMModel.from_pretrained(tmp_path / "out").eval()
    assert loaded.config.options() == TINY[layout]
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert imported.parity is None
    assert f"{sum(value.numel() for value in model.parameters()):,} parameters" in imported.title
    fates = json.loads((tmp_path / "out" / REPORT_NAME).read_text())
    assert {entry["fate"] for entry in fates} == {"used", "converted", "dropped"}
    images, ids = torch.randn(2, 3, 32, 32), torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    with torch.no_grad():
        assert torch.equal(loaded.score(images, ids, ids != 1), model.score(images, ids, ids != 1))
    assert not list(tmp_path.glob(".export-*"))


@pytest.mark.slow
def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_file(tmp_path / "a.th", "swin")
    arguments = ["import", str(tmp_path / "a.th"), "--to", str(tmp_path / "out"), "--text-heads", "2"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "unpublished sizes (CCLM-3M/4M layout" in said
    assert "keys: " in said and "dropped (" in said and "give --tokenizer" in said
    assert main(arguments) == 0, "an older import may be replaced"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    assert main([*arguments[:3], str(tmp_path / "other")]) == 2
    assert "expected a new folder or an older export" in capsys.readouterr().err


@pytest.mark.slow
def test_an_import_waits_for_nobody_and_a_killed_one_loses_nothing(tmp_path: Path) -> None:
    write_file(tmp_path / "a.th", "swin")
    import_file(tmp_path / "a.th", tmp_path / "out", text_heads=2)
    with pytest.raises(CheckpointError, match="expected one export at a time"), staging_directory(tmp_path / "out"):
        import_file(tmp_path / "a.th", tmp_path / "out", text_heads=2)
    (tmp_path / ".export-out").mkdir()
    (tmp_path / "out").rename(tmp_path / ".export-out" / REPLACED)  # killed between the two renames
    with staging_directory(tmp_path / "out") as folder:
        folder.mkdir()
        assert (tmp_path / "out" / REPORT_NAME).is_file(), "the older folder came back"


def test_describing_needs_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--describe", "cclm-x2vlm-base"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "# cclm-x2vlm-base: 587 keys, 615540825 parameters (tied counted once)"
    assert "temp\t[]\tfloat32\tparam" in lines
    assert main(["import", "--describe", "clip"]) == 2
    assert "expected cclm-3m or cclm-4m" in capsys.readouterr().err
    assert main(["import"]) == 2


def test_options_of_files_are_refused_for_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(tmp_path), "--to", str(tmp_path / "out"), "--image-size", "64"]) == 2
    assert "got a folder, with --image-size" in capsys.readouterr().err
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["import", str(tmp_path), "--to", str(tmp_path)]) == 2
    assert "expected a new folder or an older export" in capsys.readouterr().err


def test_a_failed_import_leaves_nothing(tmp_path: Path) -> None:
    state = published_state(wavy_model(TINY["beit"]))
    state.pop("itm_head.3.bias")
    torch.save(state, tmp_path / "a.th")
    with pytest.raises(CheckpointError, match="1 missing"):
        import_file(tmp_path / "a.th", tmp_path / "out", text_heads=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.th"]


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    write_file(tmp_path / "a.th", "beit")
    with pytest.raises(CheckpointError, match=r"expected at most 30 ids, padding 1, got \d+ ids"):
        import_file(tmp_path / "a.th", tmp_path / "out", text_heads=2, tokenizer=tokenizer_folder)


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(TINY))
def test_with_a_tokenizer_the_folder_is_complete_and_checked(
    tmp_path: Path,
    tokenizer_folder: Path,
    layout: str,
) -> None:
    from dataclasses import replace

    options = TINY[layout]
    options = replace(options, text=replace(options.text, vocab_size=300, max_positions=40))
    model = wavy_model(options)
    torch.save(published_state(model), tmp_path / "a.th")
    imported = import_file(tmp_path / "a.th", tmp_path / "out", text_heads=2, tokenizer=tokenizer_folder)
    assert imported.parity is not None
    assert imported.parity.max_abs <= 1e-4
    opened = open_model(tmp_path / "out")
    assert opened.max_tokens == (40 if layout == "swin" else 38)
    assert opened.transform.size == 32
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in opened.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vqa", "x2vlm_nlvr"])
def test_fine_tuned_files_are_checked_too(tmp_path: Path, tokenizer_folder: Path, task: str) -> None:
    options = with_vocabulary(TASKS[task], load_tokenizer(tokenizer_folder).vocab_size)
    model, state = file_of(options)
    torch.save({"model": state}, tmp_path / "checkpoint_best.pth")
    imported = import_file(tmp_path / "checkpoint_best.pth", tmp_path / "out", text_heads=2, tokenizer=tokenizer_folder)
    assert imported.parity is not None
    assert list(imported.parity.parts) == ["answers" if task == "vqa" else "class_logits"]
    assert imported.parity.max_abs <= 1e-4
    assert imported.parity.recall == {}
    loaded = CCLMModel.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(outputs(loaded), outputs(model))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_file_in_half_precision_stays_so_and_is_checked(
    tmp_path: Path, tokenizer_folder: Path, dtype: torch.dtype
) -> None:
    model = wavy_model(with_vocabulary(TINY["swin"], load_tokenizer(tokenizer_folder).vocab_size))
    state = {name: value.to(dtype) for name, value in published_state(model).items() if value.is_floating_point()}
    torch.save({"model": {**published_state(model), **state}}, tmp_path / "a.th")
    imported = import_file(tmp_path / "a.th", tmp_path / "out", text_heads=2, tokenizer=tokenizer_folder)
    assert imported.parity is not None and imported.parity.max_abs > 0
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_stacked_tensors_are_written_from_their_parts(tmp_path: Path) -> None:
    model = wavy_model(TINY["swin"])
    stored = stored_tensors(published_state(model), TINY["swin"])
    name = "text_encoder.stack.layers.0.self_attention.query_key_value.weight"
    assert len(stored[name].parts) == 3
    expected = dict(model.named_parameters())
    assert stored.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(stored[key].whole(), value), key
