"""Texts pass the frozen first layers of the text encoder once; what comes out is remembered by their ids.

    ids ─┬─ known: the states of then ──────────────────────────────┐
         └─ new: frozen layers, in blocks of one length and height ─┴─▶ states (B, L, D) ─▶ the layers that train
    masked ids, other ones in every step: frozen layers ────────────┘

Each rank computes with a whole copy of the frozen part (which no update moves), so under ZeRO-3 nothing is gathered
for it, and ranks may differ in how many texts are new to them. A text's states are computed in a block of a fixed
height: they depend neither on what else is new nor on when that is, so a run that goes on with nothing remembered
computes what the other remembered, bit by bit wherever a row of a matrix product does not depend on its place in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from cclm.engine.deepspeed.construction import whole_parameters
from cclm.errors import ConfigError
from cclm.model.encoders import TextEmbeddings, TextEncoder, token_positions
from cclm.model.kernels import Kernels, use_kernels
from cclm.model.layers import TransformerLayer
from cclm.model.packing import PaddedLayout, text_layout
from cclm.model.shapes import Bool, Float, Int

BLOCK = 8
"""Texts of a block."""
Known = dict[bytes, Tensor]
"""Ids of a text → its states (L, D)."""


def num_frozen_layers(encoder: nn.Module) -> int:
    """How many first layers train nothing, embeddings included; 0 if these do, and in a tower of transformers."""
    if not isinstance(encoder, TextEncoder):
        return 0
    parts: list[Any] = [encoder.embeddings, *encoder.stack.layers]
    trained = [any(parameter.requires_grad for parameter in part.parameters()) for part in parts]
    return max(0, [*trained, True].index(True) - 1)


class FrozenTexts:
    """The frozen first layers of a text encoder, and what they made of the texts so far."""

    def __init__(self, encoder: Any, width: int, kernels: Kernels, limit_bytes: int) -> None:
        """Remember until `limit_bytes` are full; later texts are computed whenever they come.

        Raises:
            ConfigError: nothing is frozen from the embeddings on, or there is dropout.
        """
        self.num_layers, options = num_frozen_layers(encoder), encoder.options
        if not self.num_layers or options.dropout or options.attention_dropout:
            raise ConfigError(
                where="start.remember_bytes",
                expected="frozen embeddings and first layers of a text encoder of our own, and no dropout in it",
                got=f"{self.num_layers} frozen layers, dropout {options.dropout:g} and {options.attention_dropout:g}",
                do='Add "model.text_encoder.embeddings" and layers ("model.text_encoder.stack.layers.0", …) to '
                "start.freeze and set model.text.dropout and .attention_dropout to 0, or remove start.remember_bytes.",
            )
        self._width, self._kernels, self._free = width, kernels, limit_bytes
        self._encoder: TextEncoder = encoder
        self._known: Known = {}
        self._copy: nn.ModuleList | None = None

    @torch.no_grad()
    def __call__(
        self, ids_BL: Int[Tensor, "b l"], mask_BL: Bool[Tensor, "b l"], num_clean: int
    ) -> Float[Tensor, "b l d"]:
        """States behind the frozen layers, zero in the padding; the first `num_clean` texts are those to remember."""
        lengths = mask_BL.sum(1).tolist()
        rows = ids_BL.cpu().numpy()
        keys = [rows[number, :length].tobytes() for number, length in enumerate(lengths[:num_clean])]
        fresh = self._compute(
            {key: number for number, key in enumerate(keys) if key not in self._known}, ids_BL, lengths
        )
        masked_BLD = self._run(ids_BL[num_clean:], mask_BL[num_clean:]) if num_clean < len(lengths) else None
        self._remember(fresh)
        clean_TD = torch.cat([fresh[key] if key in fresh else self._known[key] for key in keys])
        states_BLD = clean_TD.new_zeros(*ids_BL.shape, clean_TD.shape[-1])
        states_BLD[:num_clean][mask_BL[:num_clean]] = clean_TD
        if masked_BLD is not None:
            states_BLD[num_clean:] = masked_BLD
        return states_BLD

    def _compute(self, new: Mapping[bytes, int], ids_BL: Tensor, lengths: Sequence[int]) -> Known:
        """Each new text's states, by blocks of one length; the last of a length is filled up with its first text."""
        by_length: dict[int, list[tuple[bytes, int]]] = defaultdict(list)
        for key, number in new.items():
            by_length[lengths[number]].append((key, number))
        found: Known = {}
        for length, texts in sorted(by_length.items()):
            for start in range(0, len(texts), BLOCK):
                block = texts[start : start + BLOCK]
                numbers = [number for _, number in block] + [block[0][1]] * (BLOCK - len(block))
                ids_CL = ids_BL[numbers, :length]
                states_CLD = self._run(ids_CL, torch.ones_like(ids_CL, dtype=torch.bool), is_full=True)
                found |= {key: states_CLD[place].clone() for place, (key, _) in enumerate(block)}
        return found

    def _remember(self, fresh: Known) -> None:
        for key, states_LD in fresh.items():
            if states_LD.nbytes <= self._free:
                self._known[key] = states_LD
                self._free -= states_LD.nbytes

    def _run(self, ids_BL: Tensor, mask_BL: Tensor, *, is_full: bool = False) -> Tensor:
        """The frozen part on a rectangle of texts; `is_full`: none of them has padding."""
        encoder, (embeddings, *layers) = self._encoder, self._whole()
        layout = text_layout(mask_BL, encoder.token_layout, multiple=encoder.token_multiple)
        if is_full:
            layout = PaddedLayout(batch=ids_BL.shape[0], length=ids_BL.shape[1], mask_BL=None)
        position_BL = token_positions(ids_BL, encoder.options)
        rows_TD = embeddings(layout.take_ids(ids_BL), layout.take_ids(position_BL))
        for layer in layers:
            rows_TD = layer(rows_TD, layout=layout)
        states_BLD: Tensor = layout.to_rectangle(rows_TD)
        return states_BLD

    def _whole(self) -> nn.ModuleList:
        """The copy; made in the first step, when the weights are those that the run has: a collective then."""
        if self._copy is None:
            encoder, options = self._encoder, self._encoder.options
            first: list[Any] = [encoder.embeddings, *encoder.stack.layers[: self.num_layers]]
            like = next(encoder.parameters())
            with torch.random.fork_rng(devices=[]):  # a step's dropout must not hear of the weights that are drawn here
                layers = (TransformerLayer(self._width, options) for _ in range(self.num_layers))
                copy = nn.ModuleList([TextEmbeddings(self._width, options), *layers])
            copy = copy.to(like.device, like.dtype)
            pairs = zip(copy, first, strict=True)
            for own, their in chain.from_iterable(zip(a.parameters(), b.parameters(), strict=True) for a, b in pairs):
                with whole_parameters([their]):
                    own.copy_(their)
            use_kernels(copy, self._kernels)
            self._copy = copy.requires_grad_(False).train(encoder.training)
        return self._copy
