"""The updates of a recipe's step as rows through the parts of its network, with the cost of each row.

Rows are those of `cclm/train/step.py` and `cclm/views`: texts clean and masked through the text encoder, images through
the tower, 3 matching rows and a masked one (regions: and a located one) for each row with fusion through the fusion
encoder. Texts have `text_fill` of their view's `max_tokens`; padding is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from cclm.config import RunConfig
from cclm.costs.network import MODES, Cost, build_on_meta, count
from cclm.data.config import ViewConfig
from cclm.engine.parts import freeze
from cclm.model.modeling_cclm import CCLMModel

XLM_R_WORDS = 250_002
"""Rows of the vocabulary of XLM-R, which the published recipes name as their tokenizer."""
PROBE_ROWS = 2


@dataclass(frozen=True, kw_only=True)
class Call:
    """One kind of rows through one part of the network in an update."""

    part: str
    what: str
    rows: int
    """Of the global batch."""
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Update:
    """One forward, backward and optimizer step."""

    calls: tuple[Call, ...]
    slots: int
    """Masked tokens of the global batch."""


class Counter:
    """Costs of a network's parts, each kind of row counted once."""

    def __init__(self, config: RunConfig) -> None:
        self.options, self.dtype = config.model, torch.bfloat16  # float32 has the same FLOPs and twice the bytes
        self.model: CCLMModel = build_on_meta(config.model, self.dtype)
        freeze(nn.ModuleDict({"model": self.model}), config.start.freeze)
        self.found: dict[tuple[object, ...], Cost] = {}

    def _states(self, *shape: int) -> Tensor:
        return torch.empty(PROBE_ROWS, *shape, dtype=self.dtype, device="meta", requires_grad=True)

    def _mask(self, length: int) -> Tensor:
        return torch.ones(PROBE_ROWS, length, dtype=torch.bool, device="meta")

    def image(self) -> Cost:
        """An image through the tower and the projection of its summary."""
        side = self.options.vision.image_size
        images = torch.empty(PROBE_ROWS, 3, side, side, dtype=self.dtype, device="meta")
        return self._once(("image",), lambda x: self.model.encode_images(x), images)

    def text(self, length: int) -> Cost:
        """A text through the text encoder."""
        ids = torch.zeros(PROBE_ROWS, length, dtype=torch.long, device="meta")
        return self._once(("text", length), lambda x: self.model.encode_texts(x, self._mask(length)), ids)

    def fused(self, length: int, memory: int, wanted: int) -> Cost:
        """A text with a memory of so many states (0: without) through the fusion encoder, so many of whose states are
        read, or all if the heads read means."""
        width, inputs = self.options.width, [self._states(length, self.options.width)]
        inputs += [self._states(memory, width)] if memory else []
        cells = torch.arange(PROBE_ROWS, device="meta")[:, None] * length + torch.arange(wanted, device="meta")
        wanted_W = None if self.options.fusion.pooling == "mean" else cells.flatten()

        def fuse(text: Tensor, *rest: Tensor) -> Tensor:
            return self.model.fuse(text, self._mask(length), rest[0] if rest else None, wanted_W=wanted_W)

        return self._once(("fused", length, memory, wanted), fuse, *inputs)

    def head(self, name: str) -> Cost:
        """A pooled state through a head: "project", "match", "locate" or "words"."""
        model, state = self.model, self._states(1, self.options.width)
        heads = {
            "project": lambda x: model.project_texts(x, self._mask(1)),
            "match": lambda x: model.match_logits(x, self._mask(1)),
            "locate": lambda x: model.locate_boxes(x, self._mask(1)),
            "words": lambda x: model.decode_with(model.masked_lm_states(x[:, 0]), functional.linear),
        }
        cost = self._once((name,), heads[name], state)
        if name != "words":
            return cost
        # The logits are computed in blocks, read and written there, and not kept: what stays is the hidden state.
        return replace(cost, kept_bytes=dict.fromkeys(MODES, 4.0 * self.options.width * state.element_size()))

    def count(self, function: Callable[..., Tensor], *inputs: Tensor) -> Cost:
        """Count one call of the network."""
        return count(self.model, function, *inputs)

    def _once(self, key: tuple[object, ...], function: Callable[..., Tensor], *inputs: Tensor) -> Cost:
        if key not in self.found:
            self.found[key] = self.count(function, *inputs)
        return self.found[key]


def updates_of(config: RunConfig, counter: Counter, text_fill: Mapping[str, float]) -> list[Update]:
    """Return the updates of a step: one with everything, or one for each view (`data.schedule`). `text_fill`: by view,
    real tokens of a text as a share of the longest."""
    parts = {name: rows_of(view, counter, text_fill[name]) for name, view in config.views.items()}
    groups = [list(parts)] if config.data.schedule == "joint" else [[name] for name in parts]
    return [
        Update(
            calls=tuple(call for name in names for call in parts[name][0]),
            slots=sum(parts[name][1] for name in names),
        )
        for names in groups
    ]


def rows_of(view: ViewConfig, counter: Counter, text_fill: float) -> tuple[list[Call], int]:
    """Return a view's calls, and its masked tokens."""
    length, rows, fused = math.ceil(text_fill * view.longest_text), view.batch_size, view.matching_rows
    masked = fused if counter.options.masked_lm_head else 0
    hidden = min(view.masking.max_masks, math.ceil(view.masking.mask_probability * length))
    grid = counter.options.vision.grid_side or 0
    has_images, is_tlm = "vision" in view.trains, getattr(view, "tlm", False)
    texts = rows * (getattr(view, "captions_per_image", 1) if has_images else 1 + getattr(view, "pairs_per_sample", 1))
    memory = 0 if is_tlm else 1 + grid * grid if has_images else length
    calls = [
        ("text", "clean", texts, counter.text(length)),
        ("text", "masked", masked, counter.text(length)),
        ("fusion", "matching", 0 if is_tlm else 3 * fused, counter.fused(length, memory, 1)),
        ("fusion", "masked", masked, counter.fused(length, memory, hidden)),
        ("heads", "projections", texts + (rows if has_images else 0), counter.head("project")),
        ("heads", "matching", 0 if is_tlm else 3 * fused, counter.head("match")),
    ]
    if masked * hidden:
        calls.append(("heads", "masked words", masked * hidden, counter.head("words")))
    if has_images:
        calls.append(("vision", "images", view.samples_per_step, counter.image()))
    if "boxes" in view.trains:
        calls.append(("fusion", "located", fused, counter.fused(length, memory, 1)))
        calls.append(("heads", "boxes", fused, counter.head("locate")))
    found = [Call(part=part, what=what, rows=count, cost=cost) for part, what, count, cost in calls if count]
    return found, masked * hidden
