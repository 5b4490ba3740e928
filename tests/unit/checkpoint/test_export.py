from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from cclm.checkpoint.export import (
    export,
    hub_image_processor,
    hub_tokenizer,
    refuse_to_overwrite,
    workshop,
    write_folder,
)
from cclm.checkpoint.open import (
    OpenedModel,
    build_model,
    is_export,
    model_config,
    open_model,
    read_run_config,
    transform_of,
)
from cclm.checkpoint.parity import (
    PROBE_TEXTS,
    Difference,
    ParityReport,
    difference,
    expected_outputs,
    probe_pictures,
    prove_parity,
)
from cclm.data.image import ImageTransformConfig, decode_image, eval_image
from cclm.data.tokens import load_tokenizer
from cclm.errors import CheckpointError, ConfigError
from cclm.model.modeling_cclm import CCLMModel
from cclm.track.facts import CheckpointFacts

SMALL = {
    "width": 16,
    "projection_width": 8,
    "matching_width": 16,
    "vision": {"image_size": 16, "stem_channels": [8, 8, 16], "num_heads": 2, "feedforward_width": 16},
    "text": {"num_layers": 1, "num_heads": 2, "feedforward_width": 16},
    "fusion": {"num_layers": 1, "num_heads": 2, "feedforward_width": 16},
}
TRANSFORM = ImageTransformConfig(size=16, resample="box", mean=(0.8, 0.8, 0.8), std=(0.3, 0.3, 0.3))


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One character, one token: every script of the probe is in the vocabulary."""
    letters = sorted({letter for text in PROBE_TEXTS for letter in text.lower() if letter != " "} | {"▁"})
    vocabulary = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def opened(tokenizer_folder: Path) -> OpenedModel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tokenizer_folder)
    return OpenedModel(
        model=CCLMModel(model_config(SMALL, tokenizer)).eval(),
        tokenizer=tokenizer,
        tokenizer_folder=tokenizer_folder,
        transform=TRANSFORM,
        max_tokens=20,
        origin=tokenizer_folder,
        run_folder=None,
    )


def report_of(max_abs: float) -> ParityReport:
    part = Difference(max_abs=max_abs, min_cosine=1.0)
    return ParityReport(
        image_features=part,
        text_features=Difference(max_abs=0.0, min_cosine=1.0),
        match_logits=part,
        num_images=8,
        num_texts=16,
        dtype="float32",
        tolerance=1e-4,
    )


# --- tokens and pictures: what AutoTokenizer and AutoImageProcessor will do is what our code does ---


@pytest.mark.parametrize("normalise", ["none", "cclm"])
def test_hub_tokens_are_our_tokens(tokenizer_folder: Path, normalise) -> None:  # type: ignore[no-untyped-def]
    ours = load_tokenizer(tokenizer_folder, normalise)
    theirs = hub_tokenizer(tokenizer_folder, normalise, 20)
    texts = [*PROBE_TEXTS, "well-known/unknown", "A <person> (there)!", "  many   spaces  "]
    found = theirs(texts, truncation=True)["input_ids"]
    assert found == ours.encode(texts, 20)
    assert max(map(len, found)) == 20, "the probe holds a text that is too long"


def test_hub_tokenizer_pads_right_with_the_pad_id_and_gives_no_segment_ids(tokenizer_folder: Path) -> None:
    found = hub_tokenizer(tokenizer_folder, "none", 20)(["a", "a red car"], padding=True, return_tensors="pt")
    assert set(found) == {"input_ids", "attention_mask"}
    assert found["input_ids"][0, -1] == 1 and found["attention_mask"][0, -1] == 0


def test_hub_pixels_are_our_pixels_for_every_mode_of_png() -> None:
    processor = hub_image_processor(TRANSFORM)
    for data in probe_pictures():
        from io import BytesIO

        from PIL import Image

        theirs = processor(Image.open(BytesIO(data)), return_tensors="pt")["pixel_values"][0]
        ours = torch.from_numpy(eval_image(decode_image(data), TRANSFORM))
        assert torch.allclose(theirs, ours, atol=2e-6)


def test_probe_is_the_same_every_time_and_holds_several_modes() -> None:
    from io import BytesIO

    from PIL import Image

    assert probe_pictures() == probe_pictures()
    assert {Image.open(BytesIO(data)).mode for data in probe_pictures()} == {"RGB", "RGBA", "L", "P", "LA"}


# --- opening and filling ---


def test_state_may_carry_the_training_modules_prefix(opened: OpenedModel) -> None:
    state = {f"model.{name}": tensor for name, tensor in opened.model.state_dict().items()}
    built = build_model(opened.model.config, state, "here")
    assert all(torch.equal(tensor, opened.model.state_dict()[name]) for name, tensor in built.state_dict().items())
    assert not built.training


def test_tied_decoder_may_be_missing_and_is_tied(opened: OpenedModel) -> None:
    state = {name: value for name, value in opened.model.state_dict().items() if name != "masked_lm_decoder.weight"}
    built = build_model(opened.model.config, state, "here")
    assert built.masked_lm_decoder.weight is built.text_encoder.embeddings.words.weight


def test_weights_that_do_not_fit_are_refused_with_their_names(opened: OpenedModel) -> None:
    state = dict(opened.model.state_dict())
    del state["temperature.value"]
    with pytest.raises(CheckpointError, match=r"missing \['temperature.value'\]"):
        build_model(opened.model.config, state, "here")
    with pytest.raises(CheckpointError, match="unexpected"):
        build_model(opened.model.config, {**opened.model.state_dict(), "other": torch.zeros(1)}, "here")
    with pytest.raises(CheckpointError, match="size mismatch"):
        build_model(opened.model.config, {**opened.model.state_dict(), "temperature.value": torch.zeros(3)}, "here")


def test_vocabulary_comes_from_the_tokenizer(opened: OpenedModel) -> None:
    config = model_config({**SMALL, "text": {**SMALL["text"], "vocab_size": 7}}, opened.tokenizer)
    assert config.text["vocab_size"] == opened.tokenizer.vocab_size
    assert config.text["num_layers"] == 1


def test_transform_of_a_run_without_pictures_has_the_models_size() -> None:
    config = {"data": {"tokenizer": "x", "image_text": None}, "model": {"vision": {"image_size": 48}}}
    assert transform_of(config).size == 48
    given = {"data": {"image_text": {"transform": {"size": 64, "mean": [0.1, 0.2, 0.3]}}}, "model": {}}
    assert transform_of(given) == ImageTransformConfig(size=64, mean=(0.1, 0.2, 0.3))


def test_opening_something_else_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing at this path"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="a run folder"):
        open_model(tmp_path)
    (tmp_path / "config.yaml").write_text("data: {tokenizer: x}\n")
    with pytest.raises(CheckpointError, match="a complete checkpoint, got none"):
        open_model(tmp_path)


def test_an_export_of_another_version_says_how_to_open_it(opened: OpenedModel, tmp_path: Path) -> None:
    write_folder(opened, tmp_path / "out", "float32")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["vision"]["since_removed"] = True
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"since_removed.*trust_remote_code"):
        open_model(tmp_path / "out")


# --- the folder ---


def test_folder_opens_again_with_equal_outputs(opened: OpenedModel, tmp_path: Path) -> None:
    write_folder(opened, tmp_path / "out", "float32")
    again = open_model(tmp_path / "out")
    assert (again.max_tokens, again.transform.size, again.transform.resample) == (20, 16, "box")
    pictures, texts = probe_pictures(3), PROBE_TEXTS
    before, after = expected_outputs(opened, pictures, texts), expected_outputs(again, pictures, texts)
    assert all(difference(before[name], after[name]).max_abs < 1e-5 for name in before)
    assert again.model.masked_lm_decoder.weight is again.model.text_encoder.embeddings.words.weight


def test_folder_carries_code_and_auto_map_and_no_absolute_path(opened: OpenedModel, tmp_path: Path) -> None:
    write_folder(opened, tmp_path / "out", "bfloat16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "configuration_cclm.CCLMConfig", "AutoModel": "modeling_cclm.CCLMModel"}
    assert config["dtype"] == "bfloat16"
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["auto_map"] == {"AutoImageProcessor": "image_processing_cclm.CCLMImageProcessor"}
    assert {path.name for path in (tmp_path / "out").glob("*.py")} >= {"modeling_cclm.py", "layers.py", "text.py"}
    for path in (tmp_path / "out").glob("*.json"):
        assert str(tmp_path) not in path.read_text(), f"{path.name} names a folder of this machine"


def test_exporting_does_not_touch_the_open_model(opened: OpenedModel, tmp_path: Path) -> None:
    write_folder(opened, tmp_path / "out", "float16")
    assert opened.model.dtype == torch.float32


def test_only_an_export_or_nothing_is_replaced(opened: OpenedModel, tmp_path: Path) -> None:
    refuse_to_overwrite(tmp_path / "new")
    refuse_to_overwrite(tmp_path)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="a new folder or an older export"):
        refuse_to_overwrite(tmp_path)
    with pytest.raises(CheckpointError, match="a new folder"):
        refuse_to_overwrite(tmp_path / "thesis.txt")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text('{"model_type": "bert"}')
    assert not is_export(tmp_path / "old")
    (tmp_path / "old" / "config.json").write_text('{"model_type": "cclm"}')
    refuse_to_overwrite(tmp_path / "old")


def test_a_failed_proof_leaves_the_old_export_and_no_rubbish(opened: OpenedModel, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    old = tmp_path / "model"
    old.mkdir()
    (old / "config.json").write_text('{"model_type": "cclm", "mine": 1}')

    def fails(*_: object, **__: object) -> ParityReport:
        raise CheckpointError(expected="the same", got="something else", do="Nothing was exported.")

    monkeypatch.setattr("cclm.checkpoint.export.prove_parity", fails)
    with pytest.raises(CheckpointError, match="something else"):
        export(opened, old, card=lambda report: "card")
    assert json.loads((old / "config.json").read_text())["mine"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_old_export_is_replaced_as_a_whole(opened: OpenedModel, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    old = tmp_path / "model"
    old.mkdir()
    (old / "config.json").write_text('{"model_type": "cclm"}')
    (old / "leftover.bin").write_text("x")
    monkeypatch.setattr("cclm.checkpoint.export.prove_parity", lambda *_, **__: report_of(1e-6))
    export(opened, old, card=lambda report: f"max {report.max_abs}")
    assert not (old / "leftover.bin").exists()
    assert (old / "README.md").read_text() == "max 1e-06"
    assert json.loads((old / "parity.json").read_text())["max_abs"] == 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert oct((old / "model.safetensors").stat().st_mode)[-3:] == "644"


def test_what_a_killed_export_left_is_cleared_and_a_running_one_is_left_alone(tmp_path: Path) -> None:
    left = tmp_path / ".export-model" / "model"
    left.mkdir(parents=True)
    (left / "half.safetensors").write_text("x")
    with workshop(tmp_path / "model") as hidden:
        assert list(hidden.iterdir()) == []
        with pytest.raises(CheckpointError, match="another one that is running"), workshop(tmp_path / "model"):
            pass
        assert hidden.is_dir(), "the refused one has not cleared the other's folder"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"), [(b"a: [", "broken YAML"), (b"\xff", "not UTF-8"), (None, "got a folder")]
)
def test_a_config_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_run_config(tmp_path)


def test_an_export_says_which_checkpoint_it_is(opened: OpenedModel, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    trained = replace(opened, checkpoint=CheckpointFacts(step=12, identity="a1"))
    monkeypatch.setattr(
        "cclm.checkpoint.parity.outputs_of_a_stranger",
        lambda export, pictures, texts: expected_outputs(opened, pictures, texts),
    )
    report = export(trained, tmp_path / "model", card=lambda report: "card")
    assert (report.step, report.checkpoint) == (12, "a1")
    assert open_model(tmp_path / "model").checkpoint == trained.checkpoint


# --- the proof ---


def test_difference_sees_one_wrong_number_and_a_wrong_shape() -> None:
    rows = torch.randn(3, 5)
    other = rows.clone()
    other[1, 2] += 0.25
    assert difference(rows, rows) == Difference(max_abs=0.0, min_cosine=pytest.approx(1.0))
    assert difference(rows, other).max_abs == pytest.approx(0.25)
    assert difference(rows, rows[:2]).max_abs == float("inf")


@pytest.mark.parametrize("what", ["image_features", "text_features", "match_logits", "input_ids"])
def test_the_proof_fails_on_any_wrong_output(opened: OpenedModel, tmp_path: Path, monkeypatch, what: str) -> None:  # type: ignore[no-untyped-def]
    def stranger(export: Path, pictures: list[bytes], texts: list[str]) -> dict[str, torch.Tensor]:
        found = {name: tensor.clone() for name, tensor in expected_outputs(opened, pictures, texts).items()}
        found[what][1, 0] += 1e-2 if what != "input_ids" else 1
        return found

    monkeypatch.setattr("cclm.checkpoint.parity.outputs_of_a_stranger", stranger)
    expected = "Hundegesicht" if what == "input_ids" else "a difference of 0.01"
    with pytest.raises(CheckpointError, match=expected):
        prove_parity(opened, tmp_path, dtype="float32", tolerance=1e-4)
    prove_parity(opened, tmp_path, dtype="float32", tolerance=0.1) if what != "input_ids" else None


@pytest.mark.parametrize("what", ["image_features", "text_features", "match_logits"])
def test_not_a_number_is_a_difference(opened: OpenedModel, tmp_path: Path, monkeypatch, what: str) -> None:  # type: ignore[no-untyped-def]
    def stranger(export: Path, pictures: list[bytes], texts: list[str]) -> dict[str, torch.Tensor]:
        found = expected_outputs(opened, pictures, texts)
        return {**found, what: found[what] * float("nan")}

    monkeypatch.setattr("cclm.checkpoint.parity.outputs_of_a_stranger", stranger)
    with pytest.raises(CheckpointError, match="a difference of inf"):
        prove_parity(opened, tmp_path, dtype="float32", tolerance=1e-4)


def test_a_stranger_with_another_transform_is_caught(opened: OpenedModel, monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    lighter = replace(opened, transform=replace(TRANSFORM, mean=(0.79, 0.8, 0.8)))
    monkeypatch.setattr(
        "cclm.checkpoint.parity.outputs_of_a_stranger",
        lambda export, pictures, texts: expected_outputs(lighter, pictures, texts),
    )
    with pytest.raises(CheckpointError, match=r"within 0\.0001"):
        prove_parity(opened, tmp_path, dtype="float32", tolerance=1e-4)
