"""Where the tensors of an "hf" tower stand in the file of a transformers model, alone or with other towers and heads.

vision_model.encoder.layers.0.… ┐ renamed as transformers does on loading
dinov2.encoder.layer.0.…        ┼─ the one prefix under which the whole tower is found ─▶ vision_encoder.tower.…
model.layers.0.…                ┘                                                         text_encoder.tower.…
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cclm.model.hf_text import build_text_tower, tower_config
from cclm.model.hf_vision import build_tower
from cclm.model.options import ModelOptions

IMAGE_TOWER, TEXT_TOWER, WORDS = "vision_encoder.tower.", "text_encoder.tower.", "text_encoder.embeddings.words.weight"
"""What stands before the towers' own names in our model, and the word table."""


def place_image_tower(state: Mapping[str, Tensor], options: ModelOptions) -> dict[str, tuple[str, ...]]:
    """Our name of each of the image tower's parameters → its key in the file; empty if the file does not hold it.

    A mask token may be missing: it is never used.
    """
    assert options.vision.tower is not None, "an hf tower has its configuration"
    with torch.device("meta"):
        tower = build_tower(options.vision.tower)
    named = {name: IMAGE_TOWER + name for name, _ in tower.named_parameters()}
    return _find(state, tower, named, optional=("mask_token",))


def place_text_tower(state: Mapping[str, Tensor], options: ModelOptions) -> dict[str, tuple[str, ...]]:
    """The same of the text tower and its word table; what pools its states is left."""
    assert options.text.tower is not None, "an hf tower has its configuration"
    with torch.device("meta"):
        tower = build_text_tower(tower_config(options.text.tower))
    named = {name: TEXT_TOWER + name for name, one in tower.model.named_parameters() if one.requires_grad}
    return _find(state, tower.model, {**named, tower.words_name: WORDS})


def _find(
    state: Mapping[str, Tensor], tower: nn.Module, wanted: Mapping[str, str], optional: tuple[str, ...] = ()
) -> dict[str, tuple[str, ...]]:
    """Our names → keys of the file, by the tower's own names → ours; empty if the file does not hold the tower.

    `optional`: how names end that may be missing.
    """
    renamed = _as_loaded(state, tower)
    heads = {tuple(name.split(".")[:parts]) for name in renamed for parts in (0, 1, 2)}
    for prefix in sorted(("".join(f"{part}." for part in head) for head in heads), key=len):
        found: dict[str, tuple[str, ...]] = {
            ours: (renamed[prefix + name],) for name, ours in wanted.items() if prefix + name in renamed
        }
        if all(ours in found or ours.endswith(optional) for ours in wanted.values()):
            return found
    return {}


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
