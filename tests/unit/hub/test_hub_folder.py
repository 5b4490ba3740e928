from __future__ import annotations

import json
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from cclm.data.decoding import decode_image
from cclm.data.image import eval_image
from cclm.data.options import Normalise
from cclm.data.tokens import load_tokenizer
from cclm.errors import CheckpointError
from cclm.hub.hub_folder import hub_image_processor, hub_tokenizer, stored_names, write_folder
from cclm.hub.open import OpenedModel, open_model
from cclm.hub.parity import difference
from cclm.hub.probe import make_probe, probe_inputs, probe_outputs
from cclm.hub.weight_files import Dtype, in_memory
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from tests.kinds import KINDS
from tests.tiny_families import wavy_model
from tests.unit.data.test_tokenizer_file import RECORDED, sentencepiece_folder
from tests.unit.data.test_tokens import WRITTEN_OUT, unigram_tokenizer
from tests.unit.hub.small_model import TRANSFORM
from tests.unit.hub.test_prune_vocabulary import bert_tokenizer


def write(opened: OpenedModel, folder: Path, dtype: Dtype = "float32", shard_bytes: int = 10**9) -> None:
    write_folder(opened, folder, in_memory(opened.model.state_dict()), dtype=dtype, shard_bytes=shard_bytes)


@pytest.mark.parametrize("normalise", ["none", "cclm"])
def test_hub_tokens_are_our_tokens(tokenizer_folder: Path, normalise: str) -> None:  # type: ignore[no-untyped-def]
    ours = load_tokenizer(tokenizer_folder, normalise)
    theirs = hub_tokenizer(tokenizer_folder, normalise, 20)
    texts = [*make_probe().texts, "well-known/unknown", "A <person> (there)!", "  many   spaces  "]
    found = theirs(texts, truncation=True)["input_ids"]
    assert found == ours.encode(texts, 20)
    assert max(map(len, found)) == 20, "the probe holds a text that is too long"


@pytest.mark.parametrize("normalise", ["none", "cclm"])
def test_hub_tokens_of_a_sentencepiece_file(tmp_path: Path, normalise: str) -> None:  # type: ignore[no-untyped-def]
    source = sentencepiece_folder(tmp_path / "source")
    ours = load_tokenizer(source, normalise)
    hub_tokenizer(source, normalise, 20).save_pretrained(tmp_path / "exported")
    texts = [*make_probe().texts, *(row["text"] for row in RECORDED), "Ｗｅｌｌ-known　 ﬁsh ☃"]
    found = AutoTokenizer.from_pretrained(tmp_path / "exported")(texts, truncation=True)["input_ids"]
    assert found == ours.encode(texts, 20)


@pytest.mark.parametrize("normalise", ["none", "cclm"])
def test_hub_tokens_of_a_tokenizer_with_bert_tokens(tmp_path: Path, normalise: Normalise) -> None:
    bert_tokenizer().save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path, normalise)
    assert (ours.pad_id, ours.bos_id, ours.eos_id, ours.mask_id) == (0, 2, 3, 4)
    hub_tokenizer(tmp_path, normalise, 20).save_pretrained(tmp_path / "exported")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "exported")
    texts = [*make_probe().texts, "reading [MASK] cars", "[CLS] red [SEP]"]
    assert theirs(texts, truncation=True)["input_ids"] == ours.encode(texts, 20)
    assert not {2, 3, 4} & {number for ids in ours.encode(texts, 20) for number in ids[1:-1]}
    assert theirs.pad_token_id == 0 and theirs.unk_token == "[UNK]"
    again = load_tokenizer(tmp_path / "exported")
    assert again.encode(texts, 20) == ours.encode(texts, 20)


@pytest.mark.parametrize("normalise", ["none", "cclm"])
def test_special_tokens_in_a_text_are_text_in_training_and_export(tmp_path: Path, normalise: Normalise) -> None:
    unigram_tokenizer().save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path, normalise)
    hub_tokenizer(tmp_path, normalise, 40).save_pretrained(tmp_path / "exported")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert theirs([*WRITTEN_OUT])["input_ids"] == ours.encode(WRITTEN_OUT, 40)
    again = load_tokenizer(tmp_path / "exported")
    assert again.encode(WRITTEN_OUT, 40) == ours.encode(WRITTEN_OUT, 40)
    asked = theirs("a <mask> b", split_special_tokens=False)["input_ids"]
    assert asked.count(ours.mask_id) == 1
    assert theirs("a <mask> b")["input_ids"].count(ours.mask_id) == 0, "asking once changes nothing later"


def test_hub_tokenizer_pads_right_with_the_pad_id_and_gives_no_segment_ids(tokenizer_folder: Path) -> None:
    found = hub_tokenizer(tokenizer_folder, "none", 20)(["a", "a red car"], padding=True, return_tensors="pt")
    assert set(found) == {"input_ids", "attention_mask"}
    assert found["input_ids"][0, -1] == 1 and found["attention_mask"][0, -1] == 0


def test_hub_pixels_are_our_pixels_for_every_mode_of_png() -> None:
    processor = hub_image_processor(TRANSFORM)
    for data in make_probe().images:
        theirs = processor(Image.open(BytesIO(data)), return_tensors="pt")["pixel_values"][0]
        ours = torch.from_numpy(eval_image(decode_image(data), TRANSFORM))
        assert torch.allclose(theirs, ours, atol=2e-6)


@pytest.mark.parametrize("shard_bytes", [10**9, 3000])
def test_folder_opens_again_with_equal_outputs(opened: OpenedModel, tmp_path: Path, shard_bytes: int) -> None:
    write(opened, tmp_path / "out", shard_bytes=shard_bytes)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == (shard_bytes < 10**9)
    again = open_model(tmp_path / "out")
    assert (again.max_tokens, again.transform.size, again.transform.resample) == (20, 16, "box")
    before, after = (
        probe_outputs(one.model, probe_inputs(make_probe(), one.tokenizer, one.transform, one.max_tokens))
        for one in (opened, again)
    )
    assert all(difference(before[name], after[name], name, 1.0, 1.0).max_abs < 1e-5 for name in before)
    assert again.model.masked_lm_decoder.weight is again.model.text_encoder.embeddings.words.weight


def test_folder_carries_code_and_auto_map_and_no_absolute_path(opened: OpenedModel, tmp_path: Path) -> None:
    write(opened, tmp_path / "out", "bfloat16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_cclm.CCLMConfig",
        "AutoModel": "modeling_cclm.CCLMModel",
        "AutoModelForZeroShotImageClassification": "modeling_cclm.CCLMModel",
    }
    assert (config["dtype"], config["architectures"]) == ("bfloat16", ["CCLMModel"])
    assert config["mask_token_id"] == opened.tokenizer.mask_id
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["auto_map"] == {"AutoImageProcessor": "image_processing_cclm.CCLMImageProcessor"}
    both = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert both["auto_map"] == {"AutoProcessor": "processing_cclm.CCLMProcessor"}
    files = {path.name for path in (tmp_path / "out").glob("*.py")}
    assert files >= {"modeling_cclm.py", "inference.py", "encoders.py", "processing_cclm.py", "layers.py", "heads.py"}
    for path in (tmp_path / "out").glob("*.json"):
        assert str(tmp_path) not in path.read_text(), f"{path.name} names a folder of this machine"


def test_writing_does_not_touch_the_open_model(opened: OpenedModel, tmp_path: Path) -> None:
    before = opened.model.config.to_dict()
    write(opened, tmp_path / "out", "float16")
    assert opened.model.dtype == torch.float32 and opened.model.config.to_dict() == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_our_folder_equals_what_transformers_saves(opened: OpenedModel, tmp_path: Path, kind: str) -> None:
    """The slow twin of the writer: the same names, values and config, whatever is tied."""
    model = wavy_model(KINDS[kind])
    model.save_pretrained(tmp_path / "theirs")
    write(replace(opened, model=model, config=model.config), tmp_path / "ours")
    theirs, ours = (CCLMModel.from_pretrained(tmp_path / name) for name in ("theirs", "ours"))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours")]
    ignored = ("auto_map", "mask_token_id")
    assert [{k: v for k, v in one.items() if k not in ignored} for one in configs[:1]] == [
        {k: v for k, v in one.items() if k not in ignored} for one in configs[1:]
    ]
    stored = sum(
        (tmp_path / name / "model.safetensors").stat().st_size * sign for name, sign in (("ours", 1), ("theirs", -1))
    )
    assert abs(stored) < 2000, "nothing tied is stored twice"


def test_weights_that_do_not_fit_are_told(opened: OpenedModel) -> None:
    model = CCLMModel(CCLMConfig(**asdict(KINDS["own"])))
    state = dict(model.state_dict())
    state["temperature.value"] = torch.zeros(2)
    state["stranger"] = state.pop("text_projection.linear.bias")
    with pytest.raises(CheckpointError) as caught:
        stored_names(model, in_memory(state), "here")
    for words in ("missing ['text_projection.linear.bias']", "unexpected ['stranger']", "['temperature.value [2]']"):
        assert words in str(caught.value)
