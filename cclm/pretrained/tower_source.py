"""Where the tensors of an "hf" image tower stand in the file of a Hugging Face model, alone or with a text tower.

vision_model.encoder.layers.0.… ┐ renamed as transformers does on loading
dinov2.encoder.layer.0.…        ┴─ the one prefix under which the whole tower is found ─▶ vision_encoder.tower.…
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cclm.model.hf_vision import build_tower
from cclm.model.options import ModelOptions

TOWER = "vision_encoder.tower."
"""What stands before the tower's own names in our model."""


def meta_tower(options: ModelOptions) -> nn.Module:
    """The tower without memory: names and shapes only."""
    assert options.vision.tower is not None, "an hf tower has its configuration"
    with torch.device("meta"):
        return build_tower(options.vision.tower)


def place_tower(state: Mapping[str, Tensor], options: ModelOptions) -> dict[str, tuple[str, ...]]:
    """Our name of each of the tower's parameters → its key in the file; empty if the file does not hold the tower.

    A mask token may be missing: it is never used.
    """
    tower = meta_tower(options)
    wanted = [name for name, _ in tower.named_parameters()]
    renamed = _as_loaded(state, tower)
    for prefix in sorted({_head(name, parts) for name in renamed for parts in (0, 1, 2)}, key=len):
        placed: dict[str, tuple[str, ...]] = {
            TOWER + name: (renamed[prefix + name],) for name in wanted if prefix + name in renamed
        }
        if all(TOWER + name in placed or name.endswith("mask_token") for name in wanted):
            return placed
    return {}


def _head(name: str, parts: int) -> str:
    """The first parts of a dotted name, with their dots."""
    return "".join(f"{part}." for part in name.split(".")[:parts])


def _as_loaded(state: Mapping[str, Tensor], tower: nn.Module) -> dict[str, str]:
    """Names as this version of transformers has them in memory → keys of the file, and the keys as they are."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    rules = [rule for rule in get_model_conversion_mapping(tower) if isinstance(rule, WeightRenaming)]
    names = {key: key for key in state}
    for key in state:
        name = key
        for rule in rules:
            name, _ = rule.rename_source_key(name)
        names[name] = key
    return names
