"""Text encoders of the transformers library, tiny, as the configurations that their authors' files would hold."""

from __future__ import annotations

import json
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig

WIDTH, LONGEST = 32, 40
IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": LONGEST,
    **IDS,
}
DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
"""As mDeBERTa-v3 has them, its buckets apart (256)."""

CONFIGS: dict[str, PreTrainedConfig] = {
    "modernbert": transformers.ModernBertConfig(**SIZES, cls_token_id=0, sep_token_id=2, local_attention=4),
    "eurobert": transformers.EuroBertConfig(**SIZES, num_key_value_heads=1, mask_token_id=3),
    "mdeberta": transformers.DebertaV2Config(**SIZES, **DEBERTA),
    "deberta_v2": transformers.DebertaV2Config(**SIZES, **{**DEBERTA, "share_att_key": False}, conv_kernel_size=3),
    "bert": transformers.BertConfig(**SIZES),
    "xlm_roberta": transformers.XLMRobertaConfig(**SIZES),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=50, dim=WIDTH, n_layers=3, n_heads=2, hidden_dim=48, max_position_embeddings=LONGEST, pad_token_id=1
    ),
    "electra": transformers.ElectraConfig(**SIZES, embedding_size=16),
    "mpnet": transformers.MPNetConfig(**SIZES),
}
"""Those that the documentation names."""
LONGEST_OF = {"xlm_roberta": LONGEST - 2, "mpnet": LONGEST - 2}
"""Positions counted from behind the padding's id."""


def tower_values(name: str) -> dict[str, Any]:
    """What our own configuration carries of a tower's."""
    values: dict[str, Any] = json.loads(CONFIGS[name].to_json_string(use_diff=False))
    return values


def text_options(name: str) -> dict[str, Any]:
    """The `text:` block of a model with this tower."""
    return {"architecture": "hf", "tower": tower_values(name), "max_positions": LONGEST_OF.get(name, LONGEST)}


def shaken(model: nn.Module) -> nn.Module:
    """Biases and gains that are not trivial, so that a forgotten one shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
