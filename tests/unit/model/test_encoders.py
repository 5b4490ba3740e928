"""The vision, text and fusion encoders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cclm.model.encoders import pool_states
from cclm.model.options import VisionOptions
from cclm.model.vision import ChannelAffine, ChannelNorm, ConvVisionEncoder, StemStage
from tests.unit.model.tiny import LENGTHS, tiny_images, tiny_model, tiny_texts


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stem_norm": "group"},
        {"stem_norm": "affine"},
        {"stem_stage": "skip"},
        {"stem_stage": "residual"},
        {"num_layers": 0},
    ],
)
def test_images_become_a_mean_and_a_grid(changes: dict[str, object]) -> None:
    model = tiny_model(vision=changes)
    image_BND = model.encode_images(tiny_images())
    assert image_BND.shape == (5, 1 + 4, 16)
    torch.testing.assert_close(image_BND[:, 0], image_BND[:, 1:].mean(1))


def test_an_image_does_not_depend_on_its_batch() -> None:
    images = tiny_images()
    for norm in ("layer", "group", "affine"):
        model = tiny_model(vision={"stem_norm": norm}).train()
        torch.testing.assert_close(model.encode_images(images)[2:3], model.encode_images(images[2:3]))


def test_the_demo_stem_has_sixteen_tokens() -> None:
    encoder = ConvVisionEncoder(128, VisionOptions())
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 17, 128)
    kernels = [tuple(weight.shape) for name, weight in encoder.stem.named_parameters() if weight.ndim == 4]
    assert kernels == [
        (32, 3, 4, 4),
        (64, 32, 3, 3),
        (64, 64, 3, 3),
        (128, 64, 3, 3),
        (128, 128, 3, 3),
        (128, 128, 1, 1),
    ]


def test_channel_norm_normalises_each_pixel() -> None:
    norm = ChannelNorm(6, 1e-5)
    result = norm(3 + 2 * torch.randn(2, 6, 3, 3))
    torch.testing.assert_close(result.mean(1), torch.zeros(2, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.std(1, unbiased=False), torch.ones(2, 3, 3), atol=1e-3, rtol=0)


def test_calibration_normalises_what_leaves_each_convolution_and_then_stands_still() -> None:
    model = tiny_model(vision={"stem_norm": "affine", "stem_stage": "residual"}).train()
    seen: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, ChannelAffine):
            module.register_forward_hook(lambda _, __, output: seen.append(output))
    model.calibrate_stem(3 + tiny_images())
    assert len(seen) == 3
    for output in seen:
        torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(output.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(output.std((0, 2, 3)), torch.ones(output.shape[1]), atol=1e-3, rtol=0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.encode_images(tiny_images()).sum().backward()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is not None for parameter in model.vision_encoder.parameters())


def test_stages_connect_their_convolutions_in_three_ways() -> None:
    images = torch.randn(2, 4, 8, 8)
    for kind in ("plain", "skip", "residual"):
        stage = StemStage(VisionOptions(stem_stage=kind), 4, 6)
        halved = functional.relu(stage.halve(images))
        kept = stage.keep(halved)
        shortcut = stage.shortcut(images) if stage.shortcut is not None else 0
        expected = {
            "plain": functional.relu(kept),
            "skip": halved + functional.relu(kept),
            "residual": functional.relu(kept + shortcut),
        }[kind]
        torch.testing.assert_close(stage(images), expected)


def test_text_states_are_zero_in_the_padding_and_do_not_depend_on_it() -> None:
    model = tiny_model()
    ids_BL, mask_BL = tiny_texts()
    text_BLD = model.encode_texts(ids_BL, mask_BL)
    assert text_BLD[~mask_BL].abs().max() == 0
    alone = model.encode_texts(ids_BL[:1, :5], mask_BL[:1, :5])
    torch.testing.assert_close(text_BLD[:1, :5], alone)


def test_the_position_offset_shifts_the_table() -> None:
    plain, shifted = tiny_model(), tiny_model(text={"position_offset": 2})
    with torch.no_grad():
        table = plain.text_encoder.embeddings.positions.weight
        shifted.load_state_dict(plain.state_dict())
        shifted.text_encoder.embeddings.positions.weight[2:].copy_(table[:-2])
    ids_BL, mask_BL = tiny_texts()
    torch.testing.assert_close(plain.encode_texts(ids_BL, mask_BL), shifted.encode_texts(ids_BL, mask_BL))


def test_a_text_longer_than_the_table_is_a_sentence() -> None:
    model = tiny_model(text={"position_offset": 2})
    with pytest.raises(ValueError, match=r"at most 10 tokens \(text.max_positions\), got 11. Truncate"):
        model.encode_texts(*tiny_texts((11,)))


def test_pooling() -> None:
    _, mask_BL = tiny_texts()
    states_BLD = torch.randn(*mask_BL.shape, 4)
    assert torch.equal(pool_states(states_BLD, mask_BL, "cls"), states_BLD[:, 0])
    torch.testing.assert_close(pool_states(states_BLD, mask_BL, "mean")[2], states_BLD[2, :9].mean(0))


def test_mean_first_puts_the_mean_in_the_first_place() -> None:
    plain, first = tiny_model(text={"pooling": "mean"}), tiny_model(text={"pooling": "mean_first"})
    ids_BL, mask_BL = tiny_texts()
    expected_BLD = plain.encode_texts(ids_BL, mask_BL)
    text_BLD = first.encode_texts(ids_BL, mask_BL)
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(text_BLD[row, 0], expected_BLD[row, :length].mean(0))
    torch.testing.assert_close(text_BLD[:, 1:], expected_BLD[:, 1:])
    torch.testing.assert_close(first.project_texts(text_BLD, mask_BL), plain.project_texts(expected_BLD, mask_BL))


@pytest.mark.parametrize("changes", [{"norm_position": "post"}, {"embedding_norm": True}])
def test_embeddings_can_be_normalised_and_post_norm_always_does(changes: dict[str, object]) -> None:
    model = tiny_model(text={"num_layers": 0, **changes})
    model.text_encoder.stack.final_norm = None
    text_BLD = model.encode_texts(*tiny_texts((3,)))
    norm = model.text_encoder.embeddings.norm
    assert norm is not None
    torch.testing.assert_close((text_BLD - norm.bias).div(norm.weight).mean(-1), torch.zeros(1, 3), atol=1e-5, rtol=0)


def test_fusion_rows_are_independent_and_read_only_real_memory() -> None:
    model = tiny_model(fusion={"null_memory": True})
    ids_BL, mask_BL = tiny_texts()
    text_BLD = model.encode_texts(ids_BL, mask_BL)
    memory_BND = torch.randn(5, 6, 16)
    memory_mask_BN = torch.arange(6) < torch.tensor([[6], [2], [4], [1], [6]])
    fused_BLD = model.fuse(text_BLD, mask_BL, memory_BND, memory_mask_BN)
    assert fused_BLD[~mask_BL].abs().max() == 0
    spoiled = memory_BND.masked_fill(~memory_mask_BN[..., None], 1e3)
    torch.testing.assert_close(model.fuse(text_BLD, mask_BL, spoiled, memory_mask_BN), fused_BLD)
    alone = model.fuse(text_BLD[1:2], mask_BL[1:2], memory_BND[1:2, :2])
    torch.testing.assert_close(alone, fused_BLD[1:2])
    other = model.fuse(text_BLD, mask_BL, memory_BND.flip(0), memory_mask_BN.flip(0))
    assert (other - fused_BLD).abs().max() > 1e-3
