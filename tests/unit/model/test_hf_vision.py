from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.model.modeling_cclm import CCLMModel
from tests.left_to_long import left_to_slow
from tests.unit.model.hf_towers import CLASS_TOKENS, CONFIGS, GRID, SIDE, WIDTH
from tests.unit.model.tiny import tiny_config, tiny_texts

STRETCHES = ("siglip", "siglip2", "clip", "dinov2", "dinov2_registers", "dinov3", "beit", "vit")


def hf_model(name: str, width: int = WIDTH, image_size: int = SIDE, **changes: Any) -> CCLMModel:
    """A tiny model around an image tower with fresh weights."""
    torch.manual_seed(0)
    tower = json.loads(CONFIGS[name].to_json_string(use_diff=False))
    vision = {"architecture": "hf", "tower": tower, "image_size": image_size, **changes}
    return CCLMModel(tiny_config(width=width, vision=vision)).eval()


def pictures(batch: int = 3, side: int = SIDE) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", left_to_slow(CONFIGS, "siglip2", "dinov3", "swinv2"))
def test_tokens_and_gradients(name: str) -> None:
    model = hf_model(name)
    grid = GRID.get(name, 4)
    tokens_BND = model.encode_images(pictures())
    assert model.grid_side == grid
    assert tokens_BND.shape == (3, 1 + grid**2, WIDTH)
    torch.testing.assert_close(tokens_BND[:, 0], tokens_BND[:, 1:].mean(1))
    tokens_BND.square().sum().backward()
    trained = {key: value for key, value in model.vision_encoder.named_parameters() if value.requires_grad}
    assert [key for key, value in trained.items() if value.grad is None] == []
    frozen = {key for key, _ in model.vision_encoder.named_parameters()} - set(trained)
    assert all(key.endswith("mask_token") for key in frozen)


def test_a_change_of_precision_does_not_round_what_positions_are_computed_with() -> None:
    tower = hf_model("dinov3").vision_encoder
    before = {name: value.clone() for name, value in tower.named_buffers() if "inv_freq" in name}
    tower.to(torch.bfloat16).to(torch.float32)
    assert before and all(torch.equal(dict(tower.named_buffers())[name], value) for name, value in before.items())


@pytest.mark.parametrize("name", left_to_slow(CONFIGS, "siglip2", "dinov3", "swinv2"))
def test_a_saved_model_computes_the_same(tmp_path: Path, name: str) -> None:
    model = hf_model(name, width=16)
    model.save_pretrained(tmp_path)
    loaded = CCLMModel.from_pretrained(tmp_path).eval()
    assert loaded.config.options() == model.config.options()
    with torch.no_grad():
        assert torch.equal(loaded.encode_images(pictures()), model.encode_images(pictures()))


@pytest.mark.parametrize("name", STRETCHES)
def test_larger_pictures_than_the_tower_was_trained_on(name: str) -> None:
    with torch.no_grad():
        assert hf_model(name, image_size=64).encode_images(pictures(2, 64)).shape == (2, 65, WIDTH)


def test_patches_are_those_of_the_tower_itself() -> None:
    model = hf_model("dinov2_registers")
    with torch.no_grad():
        states = model.vision_encoder.tower(pictures()).last_hidden_state
        tokens_BND = model.encode_images(pictures())
    torch.testing.assert_close(tokens_BND[:, 1:], states[:, 5:])  # a class token and four registers stand before them


def test_patches_of_a_tower_for_pictures_of_any_shape() -> None:
    processor_order = hf_model("siglip2").vision_encoder._patches(pictures(1))["pixel_values"]
    image = pictures(1)[0]
    second = image[:, :8, 8:16].permute(1, 2, 0).reshape(-1)  # channels last, as transformers' processor cuts them
    torch.testing.assert_close(processor_order[0, 1], second)


@pytest.mark.parametrize("name", CLASS_TOKENS)
def test_the_class_token_may_stand_for_the_image(name: str) -> None:
    model = hf_model(name, summary="class")
    with torch.no_grad():
        tokens_BND = model.encode_images(pictures())
        mean_BND = hf_model(name).encode_images(pictures())
    assert torch.equal(tokens_BND[:, 1:], mean_BND[:, 1:])
    assert not torch.allclose(tokens_BND[:, 0], mean_BND[:, 0], atol=1e-3)


def test_regions_are_pooled_on_the_grid() -> None:
    model = hf_model("clip")
    image_BND = model.encode_images(pictures(2))
    mask_RN = torch.zeros(1, 17, dtype=torch.bool)
    mask_RN[0, [0, 1, 2]] = True
    region_RND = model.pool_regions(image_BND, torch.tensor([1]), mask_RN)
    torch.testing.assert_close(region_RND[0, 0], image_BND[1, 1:3].mean(0))


def test_what_cannot_be_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="expected a tower with a class token, got siglip_vision_model"):
        hf_model("siglip", summary="class").encode_images(pictures())
    with pytest.raises(ValueError, match="vision: expected a tower for architecture"):
        tiny_config(vision={"architecture": "hf"})
    with pytest.raises(ValueError, match=r"vision.image_size: expected a multiple of 8 \(the stride of the tower\)"):
        hf_model("vit", image_size=30)
    model = hf_model("vit")
    model.grid_side = None
    with pytest.raises(ValueError, match="regions: expected an image tower with a square grid of patches"):
        model.pool_regions(model.encode_images(pictures(1)), torch.tensor([0]), torch.ones(1, 17, dtype=torch.bool))


PROGRAM = """
import sys
for name in ("cclm", "jaxtyping"):
    sys.modules[name] = None  # importing it fails, even where it is installed
import torch
from pathlib import Path
from transformers import AutoModel
given = torch.load(sys.argv[1])
scores = {}
for folder in sorted(Path(sys.argv[2]).iterdir()):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        scores[folder.name] = model.score(given["images"], given["ids"], given["mask"])
torch.save(scores, sys.argv[3])
"""


@pytest.mark.slow
def test_every_tower_loads_where_the_library_is_not_installed(tmp_path: Path) -> None:
    ids_BL, mask_BL = tiny_texts((5, 3, 4))
    models = {name: hf_model(name, width=16) for name in CONFIGS}
    for name, model in models.items():
        model.save_pretrained(tmp_path / "models" / name)
    torch.save({"images": pictures(), "ids": ids_BL, "mask": mask_BL}, tmp_path / "inputs.pt")
    away = {name: str(tmp_path / "hub") for name in ("HF_HOME", "HF_MODULES_CACHE")} | {"HF_HUB_OFFLINE": "1"}
    places = [str(tmp_path / name) for name in ("inputs.pt", "models", "scores.pt")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, *places],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | away,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "scores.pt")
    assert found.keys() == models.keys()
    for name, model in models.items():
        with torch.no_grad():
            torch.testing.assert_close(found[name], model.score(pictures(), ids_BL, mask_BL), msg=name)
