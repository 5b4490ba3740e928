"""A folder of golden vectors: numbers that the published research code computed on random weights of tiny models.

Layout: meta.json (sizes, losses, gradient norms, optimizer groups), state.safetensors (published names),
acts.safetensors (inputs, states, losses, gradients of each case), and, where the family has them,
optim_steps.safetensors, world2.safetensors, bias_interp.safetensors, source_*.safetensors, finetune.safetensors.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import ModelOptions, TextOptions, VisionOptions
from cclm.pretrained.families import published_options
from cclm.pretrained.import_cclm import convert
from cclm.pretrained.published_names import Weight, published_weights
from tests.architecture.sources import ROOT

VARIABLE = "CCLM_GOLDEN"
DEFAULT = ROOT.parent / "shared" / "golden"
"""Beside the checkout; `make test-golden GOLDEN=DIR` sets the variable instead."""


def golden_root() -> Path:
    """Where the sets are looked for."""
    return Path(os.environ.get(VARIABLE) or DEFAULT)


def find_sets() -> list[Path]:
    """Folders with a meta.json and a state: the given one, and those inside it."""
    root = golden_root()
    folders = [root, *sorted(root.iterdir())] if root.is_dir() else []
    return [folder for folder in folders if (folder / "meta.json").exists() and (folder / "state.safetensors").exists()]


def set_parameters() -> list[Any]:
    """One pytest parameter per set, or one that is skipped and says why."""
    found = [pytest.param(folder, id=folder.name) for folder in find_sets()]
    missing = pytest.mark.skip(reason=f"no golden vectors in {golden_root().name}/: make test-golden GOLDEN=DIR")
    return found or [pytest.param(None, id="none", marks=missing)]


@dataclass(frozen=True)
class GoldenSet:
    """One folder."""

    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        """meta.json."""
        content: dict[str, Any] = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
        return content

    @cached_property
    def acts(self) -> dict[str, Tensor]:
        """Inputs, states, losses and gradients by "CASE.what"."""
        return load_file(self.folder / "acts.safetensors")

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Another file of the set; the test is skipped where it has none."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            pytest.skip(f"{self.folder.name} has no {path.name}")
        return load_file(path)

    @property
    def cases(self) -> list[str]:
        """Names of the pre-training cases."""
        return list(self.meta["cases"])

    @property
    def is_x2vlm(self) -> bool:
        """Whether it is of the X2VLM layout."""
        return bool(self.meta["pretrain_config"].get("use_beit_v2"))

    @cached_property
    def options(self) -> ModelOptions:
        """The tiny model's options, dropout off, from the configuration in meta.json."""
        made = _x2vlm_options(self.meta) if self.is_x2vlm else _swin_options(self.meta, self.state)
        vision_config, text_config = self.meta["vision_config"], self.meta["text_config"]
        ratio = vision_config.get("mlp_ratio", 4)
        vision = replace(
            made.vision,
            drop_path=0.0,
            feedforward_width=int(ratio * made.width),
            norm_eps=vision_config.get("layer_norm_eps", made.vision.norm_eps),
        )
        text = replace(made.text, dropout=0.0, attention_dropout=0.0, norm_eps=text_config["layer_norm_eps"])
        cross = self.meta.get("cross_config") or text_config
        fusion = replace(made.fusion, dropout=0.0, attention_dropout=0.0, norm_eps=cross["layer_norm_eps"])
        return replace(made, text=text, fusion=fusion, vision=vision)

    @cached_property
    def weights(self) -> list[Weight]:
        """Published names of our parameters."""
        return published_weights(self.options)

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The published state dict."""
        return load_file(self.folder / "state.safetensors")

    def model(self, token_layout: str = "auto") -> CCLMModel:
        """The model with the set's weights, through the importer."""
        options = replace(self.options, token_layout=token_layout)
        model = CCLMModel(CCLMConfig(**asdict(options)))
        state, _ = convert(self.state, options)
        loaded = model.load_state_dict(state, strict=False)
        assert not loaded.unexpected_keys
        assert set(loaded.missing_keys) <= {"masked_lm_decoder.weight"}
        return model.eval()

    def inputs(self, case: str) -> dict[str, Tensor]:
        """The case's inputs by short name; what it does not list comes from the case that it varies."""
        parents = {"itc2": "img1", "region_all": "region", "tlm": "para", "padid": "img1"}
        given = self.inputs(parents[case]) if case in parents else {}
        prefix = f"{case}.in."
        own = {name.removeprefix(prefix): value for name, value in self.acts.items() if name.startswith(prefix)}
        if case == "region_all":
            given = {name: value for name, value in given.items() if name != "is_image"}
        return {**given, **own}

    def negatives(self, case: str) -> tuple[Tensor, Tensor] | None:
        """Recorded draws: for each second side its wrong first side, for each first side its wrong second side."""
        source = {"region_all": "region", "padid": "img1"}.get(case, case)
        first, second = (
            self.acts.get(f"{source}.neg.{name}") for name in ("idx_first_for_second", "idx_second_for_first")
        )
        return None if first is None or second is None else (first, second)


@cache
def golden_set(folder: Path) -> GoldenSet:
    """Read a set once."""
    return GoldenSet(folder)


def _swin_options(meta: dict[str, Any], state: dict[str, Tensor]) -> ModelOptions:
    vision, text = meta["vision_config"], meta["text_config"]
    layers = meta["pretrain_config"]["text_num_hidden_layers"]
    fused = {name.split(".")[4] for name in state if ".crossattention." in name}
    return published_options(
        width=text["hidden_size"],
        projection_width=meta["pretrain_config"]["embed_dim"],
        vision=VisionOptions(
            architecture="swin",
            image_size=vision["image_res"],
            patch_size=meta["pretrain_config"]["patch_size"] // 2 ** (len(vision["depths"]) - 1),
            window=vision["window_size"],
            stage_layers=tuple(vision["depths"]),
            stage_heads=tuple(vision["num_heads"]),
            num_heads=vision["num_heads"][-1],
        ),
        text=_text_options(text, layers - len(fused)),
        fusion_layers=len(fused),
    )


def _x2vlm_options(meta: dict[str, Any]) -> ModelOptions:
    vision, text = meta["vision_config"], meta["text_config"]
    return published_options(
        width=text["hidden_size"],
        projection_width=meta["pretrain_config"]["embed_dim"],
        vision=VisionOptions(
            architecture="beit",
            image_size=meta["pretrain_config"]["image_res"],
            patch_size=vision["patch_size"],
            num_layers=vision["depth"],
            num_heads=vision["num_heads"],
        ),
        text=_text_options(text, meta["pretrain_config"]["text_num_hidden_layers"]),
        fusion_layers=meta["pretrain_config"]["cross_num_hidden_layers"],
    )


def _text_options(text: dict[str, Any], num_layers: int) -> TextOptions:
    return TextOptions(
        vocab_size=text["vocab_size"],
        pad_token_id=text["pad_token_id"],
        max_positions=text["max_position_embeddings"],
        num_layers=num_layers,
        num_heads=text["num_attention_heads"],
        feedforward_width=text["intermediate_size"],
    )
