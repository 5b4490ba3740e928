"""Attention of sequences of any length: when it is chosen, and what passes through it, with the same numbers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from cclm.errors import ConfigError
from cclm.model.kernels import use_kernels
from cclm.model.modeling_cclm import CCLMModel
from cclm.ops import choice
from cclm.ops.choice import VARLEN, Network, choose_model_kernels
from cclm.ops.options import KernelConfig
from tests.stand_in_varlen import varlen_reference
from tests.unit.model.test_wanted import WANTED_W
from tests.unit.model.tiny import tiny_images, tiny_model, tiny_texts

GPU = torch.device("cuda")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the stand-in was called with."""
    if find_spec(VARLEN) is None:
        pytest.skip("torch 2.10 has it")
    found = list[tuple[Any, ...]]()

    def noted(*arguments: Any) -> Tensor:
        found.append(arguments)
        return varlen_reference(*arguments)

    monkeypatch.setattr(f"{VARLEN}.varlen_attn", noted)
    return found


def run(model: CCLMModel, wanted_W: Tensor | None = None) -> dict[str, Tensor]:
    """Outputs and gradients of texts that read images."""
    ids_BL, mask_BL = tiny_texts()
    model.double()
    text_BLD = model.encode_texts(ids_BL, mask_BL)
    fused_BLD = model.fuse(text_BLD, mask_BL, model.encode_images(tiny_images().double()), wanted_W=wanted_W)
    model.zero_grad()
    fused_BLD.square().sum().backward()  # type: ignore[no-untyped-call]
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {"texts": text_BLD.detach(), "fused": fused_BLD.detach(), **gradients}


def with_varlen(model: CCLMModel) -> CCLMModel:
    use_kernels(model, choose_model_kernels(KernelConfig(attention="varlen"), GPU).kernels)
    return model


def test_packed_texts_pass_through_it_with_the_same_outputs_and_gradients(calls: list[tuple[Any, ...]]) -> None:
    expected, found = run(tiny_model(token_layout="packed")), run(with_varlen(tiny_model(token_layout="packed")))
    model = tiny_model()
    assert len(calls) == model.config.text["num_layers"] + model.config.fusion["num_layers"]
    for query, key, value, *starts, longest, _ in calls:
        assert query.shape == key.shape == value.shape == (22, 2, 8)
        assert [one.tolist() for one in starts] == [[0, 5, 6, 15, 20, 22]] * 2 and longest == 9
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("multiple", [1, 8])
def test_so_do_the_queries_that_are_wanted_of_the_last_layer(calls: list[tuple[Any, ...]], multiple: int) -> None:
    """And nothing else of it: text 1 has none of them."""
    models = [tiny_model(token_layout="packed"), with_varlen(tiny_model(token_layout="packed"))]
    for model in models:
        model.fusion_encoder.token_multiple = multiple
    expected, found = (run(model, WANTED_W) for model in models)
    assert len(calls) == models[0].config.text["num_layers"] + models[0].config.fusion["num_layers"]
    query, key, _, *starts, longest, _ = calls[-1]
    assert (len(query), len(key), longest) == (6, 22 if multiple == 1 else 24, 9)
    assert [one.tolist()[:6] for one in starts] == [[0, 1, 1, 4, 5, 6], [0, 5, 6, 15, 20, 22]]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layout", ["padded", "grouped"])
def test_other_layouts_do_not(calls: list[tuple[Any, ...]], layout: str) -> None:
    expected, found = run(tiny_model(token_layout=layout)), run(with_varlen(tiny_model(token_layout=layout)))
    assert not calls
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_nor_does_attention_with_dropout(calls: list[tuple[Any, ...]]) -> None:
    """The choice refuses it; a network that is computed with it all the same must not lose its dropout."""
    model = with_varlen(tiny_model(token_layout="packed", text={"attention_dropout": 0.5}))
    run(model.train())
    assert len(calls) == model.config.fusion["num_layers"]
    run(model.eval())
    assert len(calls) == 2 * model.config.fusion["num_layers"] + model.config.text["num_layers"]


@pytest.mark.parametrize(
    ("device", "changes"),
    [
        ("cpu", {}),
        ("cuda", {"precision": "fp32"}),
        ("cuda", {"attention_dropout": 0.1}),
        ("cuda", {"head_widths": (64, 260)}),
        ("cuda", {"head_widths": (64, 512)}),
        ("cuda", {"is_missing": True}),
    ],
)
def test_where_it_cannot_run_auto_takes_another_and_asking_for_it_is_an_error(
    device: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_missing = changes.pop("is_missing", False)
    monkeypatch.setattr(choice, "find_spec", lambda name: None if is_missing else object())
    network = Network(**changes)
    found = choose_model_kernels(KernelConfig(), torch.device(device), network)
    assert found.kernels.packed_attention is None and found.choices[0].chosen == (
        "recomputed" if device == "cpu" else "sdpa"
    )
    with pytest.raises(ConfigError) as caught:
        choose_model_kernels(KernelConfig(attention="varlen"), torch.device(device), network)
    assert caught.value.where == "kernels.attention" and caught.value.got.startswith("varlen: ")


def test_auto_takes_it_where_it_can_run(calls: list[tuple[Any, ...]]) -> None:
    found = choose_model_kernels(KernelConfig(), GPU, Network(head_widths=(64, 32)))
    assert found.choices[0].chosen == "varlen" and found.kernels.packed_attention is not None
    assert choose_model_kernels(KernelConfig(attention="sdpa"), GPU).kernels.packed_attention is None
