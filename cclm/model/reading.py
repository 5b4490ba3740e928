"""Which texts read which memories in cross-attention, as blocks of queries and of the tokens that they read.

own      each text has a memory of its own (B, N, D), in the order of the texts; or M memories and an index (B,)
shared   M memories and an index, on a CPU: all queries to one memory are one sequence, whatever text they belong to,
         for a query does not see the others. So keys and values are computed once for each memory, no reader has a copy
         of them, and their gradients are summed by the products. A memory is padded only to those of similar length.

The slow twin of an index is a memory for each text: `memory_MND[memory_of_B]`.

Where only some tokens are wanted of the last layer, these read the memories, and their own text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .packing import GroupedLayout, PackedLayout, PaddedLayout, gather_rows, invert, join_blocks
from .shapes import Bool, Float, Int, Shaped

Block = tuple[Tensor, Tensor, Tensor | None]
"""Queries (b, l, D), what they read (b, n, E), and which of it is real, (b, 1, 1, n) (None: all)."""
MEMORY_SPREAD, BAG_SPREAD = 1.2, 1.5
"""How much longer than the shortest memory (and number of queries) of a block the longest may be. Smaller: more blocks,
each with its own calls; larger: more padding. Images (50 tokens) and texts of 40 do not share a block."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Every text reads a memory of its own."""

    layout: PaddedLayout
    memory_of_B: Tensor | None = None
    """Row of the memories for each sequence, in the layout's order; None: they stand in that order."""
    mask_BN: Tensor | None = None
    """Which tokens of each sequence's memory are real, in the layout's order; None: all."""
    has_memory_T1: Tensor | None = None
    """False for flat rows that read nothing although others do; None: all read."""

    def arrange(self, memory_MND: Float[Tensor, "m n d"]) -> Float[Tensor, " *rows d"]:
        """Bring a memory into the order in which keys and values are wanted; once, before the layers."""
        return memory_MND if self.memory_of_B is not None else self.layout.sort_sequences(memory_MND)

    def blocks(self, query_TD: Float[Tensor, "t d"], memory: Float[Tensor, " *rows e"]) -> Iterator[Block]:
        """Cut flat queries and what was computed of the arranged memory into blocks."""
        memory_BNE = memory if self.memory_of_B is None else memory[self.memory_of_B]
        queries = self.layout.to_blocks(query_TD)
        masks: Sequence[Tensor | None] = [None] * len(queries)
        if self.mask_BN is not None:
            masks = self.layout.split_sequences(self.mask_BN[:, None, None])
        yield from zip(queries, self.layout.split_sequences(memory_BNE), masks, strict=True)

    def join(self, blocks: Sequence[Float[Tensor, "_b _l d"]]) -> Float[Tensor, "t d"]:
        """Return blocks of what the queries found as flat rows."""
        return self.layout.from_blocks(blocks)


@dataclass(frozen=True, kw_only=True)
class SharedReading(Reading):
    """Queries are sorted by the memory that they read; memories by length, then by how many queries they have."""

    shapes: tuple[tuple[int, int, int], ...]
    """Of each block: memories, queries of each, tokens of each."""
    masks: tuple[Tensor | None, ...]
    """Of each block: which tokens of its memories are real."""
    query_index_C: Tensor
    """For each cell of the blocks of queries its flat row; T: padding."""
    query_cell_T: Tensor
    """For each flat row its cell."""
    token_index_K: Tensor
    """For each cell of the blocks of memories its flat token m · N + n."""
    token_cell_R: Tensor
    """For each of these its cell; K: none."""

    def arrange(self, memory_MND: Float[Tensor, "m n d"]) -> Float[Tensor, "k d"]:
        """Flat tokens, block after block."""
        return gather_rows(memory_MND.flatten(0, 1), self.token_index_K, self.token_cell_R)

    def blocks(self, query_TD: Float[Tensor, "t d"], memory: Float[Tensor, "k e"]) -> Iterator[Block]:
        """Gather the queries; the memories are views."""
        query_CD = gather_rows(query_TD, self.query_index_C, self.query_cell_T)
        queries = torch.split(query_CD, [size * bag for size, bag, _ in self.shapes])
        tokens = torch.split(memory, [size * length for size, _, length in self.shapes])
        for (size, bag, length), query, token, mask in zip(self.shapes, queries, tokens, self.masks, strict=True):
            yield query.view(size, bag, -1), token.view(size, length, -1), mask

    def join(self, blocks: Sequence[Float[Tensor, "_b _l d"]]) -> Float[Tensor, "t d"]:
        """Gather them back."""
        return gather_rows(join_blocks(blocks), self.query_cell_T, self.query_index_C)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The tokens whose states somebody reads behind the last layer, and what they read in it."""

    row_W: Tensor
    """Row of each in the layout of all tokens."""
    place_T: Tensor
    """For each of these rows its place among them; W: none."""
    starts: Tensor
    """Place of the first of each sequence of the layout, as its `starts`."""
    own: Reading
    """Of their own text."""
    reading: Reading | None
    """Of a memory; None: there is none."""

    def take(self, rows_TD: Shaped[Tensor, " t *rest"]) -> Shaped[Tensor, " w *rest"]:
        """Their rows."""
        return gather_rows(rows_TD, self.row_W, self.place_T)


def plan_wanted(layout: PaddedLayout, cell_W: Int[Tensor, " w"], plan: Callable[..., Reading] | None) -> Wanted:
    """What the tokens at these cells b · L + l read, all real and different, text by text; `plan`: how memories are."""
    batch, length = layout.batch, layout.length
    is_known = cell_W.device.type == "cpu" and not torch.compiler.is_compiling()  # a GPU would have to be waited for
    cells = cell_W.tolist() if is_known else []
    assert len(set(cells)) == len(cells), "wanted cells: one of them twice"
    assert sorted(cells, key=lambda cell: cell // length) == cells, "wanted cells: not text by text"
    place_R = invert(cell_W, batch * length)
    readers = PackedLayout(batch=batch, length=length, mask_BL=None, index_T=cell_W, inverse_R=place_R)
    place_T = layout.take_ids(place_R.view(batch, length))
    is_grouped = isinstance(layout, GroupedLayout)
    text_B = torch.arange(batch + 1 if layout.starts is None else len(layout.starts), device=cell_W.device)
    return Wanted(
        row_W=invert(place_T, len(cell_W) + 1)[:-1],
        place_T=place_T,
        starts=torch.searchsorted(cell_W // length, text_B, out_int32=True),
        own=plan_reading(layout, layout.mask_BL, torch.arange(batch) if is_grouped else None, None, readers),
        reading=None if plan is None else plan(readers=readers),
    )


def plan_reading(
    layout: PaddedLayout,
    mask_MN: Bool[Tensor, "m n"] | None,
    memory_of_B: Int[Tensor, " b"] | None,
    has_memory_B: Bool[Tensor, " b"] | None = None,
    readers: PackedLayout | None = None,
) -> Reading:
    """How the sequences of a layout read memories: each its own (no index), or those that an index names.

    `readers`: which tokens of them read; None: all.
    """
    shares = isinstance(layout, GroupedLayout) and mask_MN is not None and mask_MN.device.type == "cpu"
    layout = readers or layout
    has_memory_T1 = None
    if has_memory_B is not None:
        has_memory_T1 = layout.take_ids(has_memory_B[:, None].expand(layout.batch, layout.length))[:, None]
    if memory_of_B is None:
        mask_BN = None if mask_MN is None else layout.sort_sequences(mask_MN)
        return Reading(layout=layout, mask_BN=mask_BN, has_memory_T1=has_memory_T1)
    if shares and mask_MN is not None:
        return replace(_plan_shared(layout, mask_MN, memory_of_B), has_memory_T1=has_memory_T1)
    memory_of_B = layout.sort_sequences(memory_of_B)
    mask_BN = None if mask_MN is None else mask_MN[memory_of_B]
    return Reading(layout=layout, memory_of_B=memory_of_B, mask_BN=mask_BN, has_memory_T1=has_memory_T1)


def _plan_shared(layout: PaddedLayout, mask_MN: Tensor, memory_of_B: Tensor) -> SharedReading:
    """Sort memories into blocks, then queries by memory. Reads sizes: for CPUs."""
    num_memories, width = mask_MN.shape
    memory_of_T = layout.take_ids(memory_of_B[:, None].expand(layout.batch, layout.length))
    bag_M = memory_of_T.bincount(minlength=num_memories)
    lengths = (mask_MN * torch.arange(1, width + 1)).amax(1).clamp_min(1).tolist()  # up to the last real token
    bags = bag_M.clamp_min(1).tolist()
    similar = _similar(range(num_memories), lengths, MEMORY_SPREAD)
    blocks = [block for members in similar for block in _similar(members, bags, BAG_SPREAD)]
    shapes = [(len(block), max(bags[m] for m in block), max(lengths[m] for m in block)) for block in blocks]
    order_M = torch.tensor([member for block in blocks for member in block])
    room_M = torch.tensor([bag for size, bag, _ in shapes for _ in range(size)])  # cells of a memory's queries
    rank_T = invert(order_M, num_memories)[memory_of_T]
    row_T = rank_T.argsort(stable=True)
    rank_T, count_M = rank_T[row_T], bag_M[order_M]
    start_M = room_M.cumsum(0) - room_M - (count_M.cumsum(0) - count_M)
    cell_T = torch.empty_like(row_T)
    cell_T[row_T] = torch.arange(len(row_T)) + start_M[rank_T]
    members = torch.split(order_M, [size for size, _, _ in shapes])
    masks = [mask_MN[member][:, :length] for member, (_, _, length) in zip(members, shapes, strict=True)]
    tokens = [
        (member[:, None] * width + torch.arange(length)).flatten()
        for member, (_, _, length) in zip(members, shapes, strict=True)
    ]
    token_index_K = torch.cat(tokens)
    return SharedReading(
        layout=layout,
        shapes=tuple(shapes),
        masks=tuple(None if bool(mask.all()) else mask[:, None, None] for mask in masks),
        query_index_C=invert(cell_T, int(room_M.sum())),
        query_cell_T=cell_T,
        token_index_K=token_index_K,
        token_cell_R=invert(token_index_K, num_memories * width),
    )


def _similar(members: Iterable[int], sizes: Sequence[int], spread: float) -> list[list[int]]:
    """Sort by size, and cut before what is larger than `spread` times the first of its piece."""
    pieces: list[list[int]] = []
    for member in sorted(members, key=sizes.__getitem__):
        if not pieces or sizes[member] > spread * sizes[pieces[-1][0]]:
            pieces.append([])
        pieces[-1].append(member)
    return pieces
