"""A text encoder from the transformers library: ModernBERT (mmBERT), EuroBERT, DeBERTa-v2 (mDeBERTa), ELECTRA, MPNet …

    ids ─ our word table ─ the tower, from its embeddings on ─ [linear to the width] ─ states (B, L, D), zero in padding

The tower is built from the configuration that our own carries, so an exported model needs nothing but transformers. Its
word table is ours and stands where every model of ours has it: tied to the masked-LM decoder, cut with the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from .encoders import check_length, mean_first
from .hf_vision import HFEncoder, fresh_model, plain_values, tower_width
from .kernels import WordEmbedding
from .options import TextOptions
from .shapes import Bool, Float, Int


@dataclass(frozen=True)
class TextTower:
    """A text model of the library without its word table."""

    model: Any
    words_name: str
    """Of the table's parameter in the model's own files."""
    words_width: int


class NoWords(nn.Module):
    """Stands where a tower had its word table, and is never called."""

    weight = torch.empty(0)
    """Some towers draw their table by this name."""
    weight._is_hf_initialized = True  # type: ignore[attr-defined]


def tower_config(values: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a tower; of the vocabulary it has as much as its positions count from."""
    given = plain_values(values)
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    pad = config.pad_token_id or 0
    config.pad_token_id = pad if pad < getattr(config, "max_position_embeddings", 0) else 0
    config.vocab_size = 1 + config.pad_token_id
    return config


def build_text_tower(config: PreTrainedConfig) -> TextTower:
    """A text model with fresh weights (`tower_config`).

    Raises:
        ValueError: its words are not a plain table.
    """
    model: Any = fresh_model(config)
    table = model.get_input_embeddings()
    if type(table) is not nn.Embedding:
        raise ValueError(
            f"text.tower: expected a model whose words are a plain table, got {type(table).__name__} in "
            f"{config.model_type}. Choose another model."
        )
    name = next(name for name, module in model.named_modules() if module is table)
    model.set_submodule(name, NoWords())
    return TextTower(model, f"{name}.weight", table.embedding_dim)


class Words(nn.Module):
    """The word table, by the name that it has in every text encoder."""

    def __init__(self, width: int, options: TextOptions) -> None:
        super().__init__()
        self.words = WordEmbedding(options.vocab_size, width, padding_idx=options.pad_token_id)


class HFTextEncoder(HFEncoder):
    """The "hf" text tower."""

    def __init__(self, width: int, options: TextOptions, token_layout: str) -> None:
        super().__init__()
        assert options.tower is not None, "the source is read before a model is built"
        self.token_layout, self.token_multiple = token_layout, 1
        """What a run sets; here texts lie in their padded rectangle, whose padding no real token sees."""
        self.options = options
        tower = build_text_tower(tower_config(options.tower))
        self.embeddings = Words(tower.words_width, options)
        self.tower = tower.model
        own_width = tower_width(self.tower.config)
        self.project = nn.Linear(own_width, width) if own_width != width else None

    def forward(
        self, ids_BL: Int[Tensor, "b l"], mask_BL: Bool[Tensor, "b l"], *, num_tokens: int | None = None
    ) -> Float[Tensor, "b l d"]:
        """States, zero where the mask is False. Raises ValueError: a text longer than the tower takes."""
        check_length(ids_BL.shape[1], self.options.max_positions)
        words_BLE = self.embeddings.words(ids_BL)
        # Only shapes are asked for on the meta device, and the library looks at the mask's values.
        seen_BL = None if mask_BL.is_meta else mask_BL.long()
        text_BLD: Tensor = self.tower(inputs_embeds=words_BLE, attention_mask=seen_BL).last_hidden_state
        if self.project is not None:
            text_BLD = self.project(text_BLD)
        text_BLD = text_BLD.masked_fill(~mask_BL[..., None], 0.0)
        return mean_first(text_BLD, mask_BL) if self.options.pooling == "mean_first" else text_BLD
