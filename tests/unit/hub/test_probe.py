from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from cclm.data.tokens import TextTokenizer
from cclm.engine.options import OptimizerConfig
from cclm.engine.plain import PlainEngine
from cclm.errors import CheckpointError
from cclm.hub.open import OpenedModel
from cclm.hub.probe import known_part, make_probe, probe_inputs, probe_outputs
from cclm.hub.reference_outputs import (
    FILE,
    OLD_FILE,
    make_recorder,
    read_reference,
    reference_of,
    write_reference,
)
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from tests.kinds import EVERY_KIND, KINDS, with_vocabulary


class Training(torch.nn.Module):
    """A training module as far as a reference cares."""

    def __init__(self, model: CCLMModel) -> None:
        super().__init__()
        self.model = model


def test_the_probe_is_the_same_every_time_and_holds_several_modes() -> None:
    probe = make_probe()
    assert probe == make_probe()
    assert {Image.open(BytesIO(data)).mode for data in probe.images} == {"RGB", "RGBA", "L", "P", "LA"}
    assert probe.num_captions == 12 < len(probe.texts) and set(probe.image_of_caption) == set(range(6))
    assert probe.texts[0] == "a red circle on white" and probe.texts[6] == "ein roter Kreis auf Weiß"


def test_texts_that_a_tokenizer_does_not_know_are_left_out(opened: OpenedModel) -> None:
    class Deaf(TextTokenizer):
        def encode(self, texts: Sequence[str], max_tokens: int, max_words: int | None = None) -> list[list[int]]:
            heard = ["" if "red" in text or text == "chó" else text for text in texts]
            return super().encode(heard, max_tokens, max_words)

    found = known_part(make_probe(), Deaf(opened.tokenizer._tokenizer))
    assert len(found.texts) == len(make_probe().texts) - 2 and "a red circle on white" not in found.texts
    assert found.image_of_caption == make_probe().image_of_caption[1:]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_outputs_are_what_the_methods_that_people_call_give(opened: OpenedModel, kind: str) -> None:
    options = with_vocabulary(KINDS[kind], opened.tokenizer.vocab_size)
    torch.manual_seed(1)
    model = CCLMModel(CCLMConfig(**asdict(options))).eval()
    inputs = probe_inputs(make_probe(), opened.tokenizer, replace(opened.transform, size=32), 20)
    found = probe_outputs(model, inputs)
    ids, mask, own = inputs.ids_TL, inputs.mask_TL, list(inputs.image_of_caption)
    assert found["input_ids"].shape == ids.shape
    with torch.inference_mode():
        expected = {"text_features": model.get_text_features(ids, mask)}
        expected["image_features"] = model.get_image_features(inputs.images_ICHW)
        if kind == "nlvr_pairs":
            row = torch.arange(len(ids))
            pairs = torch.stack([inputs.images_ICHW[(row + place) % 8] for place in (0, 1)], 1)
            expected["match_logits"] = model.score(pairs, ids, mask)
        else:
            logits = model.score_all(inputs.images_ICHW, ids[:12], mask[:12])
            expected["match_logits"] = logits.flatten(0, 1)
            slots = torch.zeros_like(ids[:4], dtype=torch.bool)
            slots[:, 1] = True
            expected["masked_lm_logits"] = model.masked_lm_logits(
                inputs.masked_ids_ML, mask[:4], slot_BL=slots, pixel_values=inputs.images_ICHW[own[:4]]
            )
        if options.box_head:
            expected["boxes"] = model.locate(inputs.images_ICHW[own], ids[:12], mask[:12])
    assert found.keys() == expected.keys() | {"input_ids", "temperature"}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4, msg=name)


def test_reference_outputs_of_an_engine_are_read_back_as_they_were(opened: OpenedModel, tmp_path: Path) -> None:
    module = Training(opened.model).train()
    module.model.vision_encoder.eval()
    engine = PlainEngine(module, OptimizerConfig(total_steps=1))
    make_recorder(opened.tokenizer, opened.transform, opened.max_tokens)(engine, tmp_path)
    assert module.model.text_encoder.training and not module.model.vision_encoder.training, "modes are as before"
    module.eval()
    found = read_reference(tmp_path)
    assert found is not None
    assert found.origin == "training engine: plain engine, one process, fp32" and found.precision == "fp32"
    expected = reference_of(opened)
    assert found.probe == expected.probe == make_probe()
    assert found.outputs.keys() == expected.outputs.keys()
    assert all(torch.equal(value, expected.outputs[name]) for name, value in found.outputs.items())
    assert read_reference(tmp_path / "elsewhere") is None


def test_the_file_of_an_older_checkpoint_is_read(opened: OpenedModel, tmp_path: Path) -> None:
    reference = reference_of(opened)
    write_reference(reference, tmp_path)
    (tmp_path / "beside").touch()
    assert (tmp_path / FILE).stat().st_mode == (tmp_path / "beside").stat().st_mode, "who may read it says the umask"
    with safe_open(tmp_path / FILE, "pt") as file:
        told = {name.replace("image_", "picture_"): text for name, text in file.metadata().items()}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    tensors["pictures"] = tensors.pop("images")
    save_file(tensors, tmp_path / OLD_FILE, told)
    (tmp_path / FILE).unlink()
    found = read_reference(tmp_path)
    assert found is not None and found.probe == reference.probe and found.origin == reference.origin
    assert all(torch.equal(value, reference.outputs[name]) for name, value in found.outputs.items())


def test_a_tokenizer_that_knows_nothing_gives_no_reference_and_is_told(opened: OpenedModel, tmp_path: Path) -> None:
    class Deaf(TextTokenizer):
        def encode(self, texts: Sequence[str], max_tokens: int, max_words: int | None = None) -> list[list[int]]:
            return super().encode(["" if text.isascii() or text[0] != "ч" else text for text in texts], max_tokens)

    deaf = Deaf(opened.tokenizer._tokenizer)
    engine = PlainEngine(Training(opened.model), OptimizerConfig(total_steps=1))
    make_recorder(deaf, opened.transform, opened.max_tokens)(engine, tmp_path)
    assert read_reference(tmp_path) is None
    with pytest.raises(CheckpointError, match="at least 4 of the probe's captions to have tokens"):
        reference_of(replace(opened, tokenizer=deaf))
