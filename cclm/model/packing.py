"""How the tokens of a batch lie in memory: padded rectangles (B, L, D) outside, flat rows (T, D) inside the layers.

Most texts are far shorter than the longest of a batch, so linears and norms run on rows of real tokens only; attention
alone needs *blocks*, rectangles of whole sequences:

    ids (B, L) → rows (T, D) → [ linear on rows → blocks → attention → rows → linear on rows ] × layers → (B, L, D)

Three layouts with one interface; the layers are written once and do not know which one they got:

padded   rows are all B · L cells; one block, the whole rectangle, masked. The slow twin, and right for images.
packed   rows are the real tokens; one block, the whole rectangle, gathered from the rows. Few kernels: for GPUs. Cells
         of padding may fill up the rows to a round number, so that few numbers occur.
grouped  the same with sequences sorted by length; one block per length, each a view without mask or padding. Least
         work: for CPUs.

All movement is by gathers, forward and backward (each is the other's gradient), because the scatter that autograd
would choose is slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .shapes import Bool, Float, Int, Shaped


@dataclass(frozen=True, kw_only=True)
class PaddedLayout:
    """Rows are all cells of the rectangle in reading order, padding included."""

    batch: int
    """B: sequences."""
    length: int
    """L: columns of the rectangle."""
    mask_BL: Tensor | None
    """True where a token is real; None: everywhere."""
    starts: Tensor | None = None
    """First row of each sequence, and the number of rows: (B + 1), int32; None: sequences do not follow each other.
    Rows that fill up are further sequences."""

    def to_rows(self, rectangle_BLD: Float[Tensor, "b l d"]) -> Float[Tensor, "t d"]:
        """Flatten the rectangle."""
        return rectangle_BLD.reshape(self.batch * self.length, rectangle_BLD.shape[-1])

    def to_rectangle(self, rows_TD: Float[Tensor, "t d"]) -> Float[Tensor, "b l d"]:
        """The inverse; padding becomes zero."""
        rectangle_BLD = rows_TD.view(self.batch, self.length, -1)
        return rectangle_BLD if self.mask_BL is None else rectangle_BLD.masked_fill(~self.mask_BL[..., None], 0.0)

    def take_ids(self, ids_BL: Int[Tensor, "b l"]) -> Int[Tensor, " t"]:
        """The integers of a rectangle (token ids, positions) as rows."""
        return ids_BL.reshape(-1)

    def to_blocks(self, rows_TD: Float[Tensor, "t d"]) -> list[Float[Tensor, "_b _l d"]]:
        """Rectangles of whole sequences, for attention."""
        return [rows_TD.view(-1, self.length, rows_TD.shape[-1])]

    def from_blocks(self, blocks: Sequence[Float[Tensor, "_b _l d"]]) -> Float[Tensor, "t d"]:
        """The inverse of `to_blocks`."""
        return blocks[0].flatten(0, 1)

    def block_masks(self) -> list[Bool[Tensor, "_b 1 1 _l"] | None]:
        """For each block, which of its tokens may be attended to (None: all)."""
        return [None if self.mask_BL is None else self.mask_BL[:, None, None, :]]

    def sort_sequences(self, memory_BND: Shaped[Tensor, " b *rest"]) -> Shaped[Tensor, " b *rest"]:
        """Bring something that belongs to the sequences into the order of the blocks."""
        return memory_BND

    def split_sequences(self, sorted_BND: Shaped[Tensor, " b *rest"]) -> list[Shaped[Tensor, " _b *rest"]]:
        """Cut what `sort_sequences` returned into one piece per block."""
        return [sorted_BND]


@dataclass(frozen=True, kw_only=True)
class CausalLayout(PaddedLayout):
    """The padded rectangle where a token sees only itself and what stands before it: for decoders."""

    def block_masks(self) -> list[Bool[Tensor, "_b 1 _l _l"] | None]:
        """Real tokens, and none that comes later; a padding token sees itself, because a softmax needs something."""
        assert self.mask_BL is not None, "a causal layout needs a mask"
        before_LL = torch.ones(self.length, self.length, dtype=torch.bool, device=self.mask_BL.device).tril()
        own_LL = torch.eye(self.length, dtype=torch.bool, device=self.mask_BL.device)
        return [(before_LL & self.mask_BL[:, None, :] | own_LL)[:, None]]


@dataclass(frozen=True, kw_only=True)
class PackedLayout(PaddedLayout):
    """Rows are the real tokens in reading order; attention still works on the whole rectangle."""

    index_T: Tensor
    """Flat cell b · L + l of each row."""
    inverse_R: Tensor
    """Row of each of the R = B · L cells; T (one past the last row) where the cell is padding."""
    is_filled: bool = False
    """Whether there may be rows of padding, behind the others."""

    def to_rows(self, rectangle_BLD: Float[Tensor, "b l d"]) -> Float[Tensor, "t d"]:
        """Take the real cells."""
        return gather_rows(super().to_rows(rectangle_BLD), self.index_T, self.inverse_R)

    def to_rectangle(self, rows_TD: Float[Tensor, "t d"]) -> Float[Tensor, "b l d"]:
        """Lay the rows out, zeros in the padding."""
        cells_RD = gather_rows(rows_TD, self.inverse_R, self.index_T)
        return super().to_rectangle(cells_RD) if self.is_filled else cells_RD.view(self.batch, self.length, -1)

    def take_ids(self, ids_BL: Int[Tensor, "b l"]) -> Int[Tensor, " t"]:
        """The integers at the real cells."""
        return ids_BL.reshape(-1)[self.index_T]

    def to_blocks(self, rows_TD: Float[Tensor, "t d"]) -> list[Float[Tensor, "_b _l d"]]:
        """One block: the rectangle; what stands in its padding is never attended to."""
        return [gather_rows(rows_TD, self.inverse_R, self.index_T).view(self.batch, self.length, -1)]

    def from_blocks(self, blocks: Sequence[Float[Tensor, "_b _l d"]]) -> Float[Tensor, "t d"]:
        """Its real cells."""
        return self.to_rows(blocks[0])


@dataclass(frozen=True, kw_only=True)
class GroupedLayout(PackedLayout):
    """Rows are the real tokens of the sequences sorted by length, so that each length is one unpadded block."""

    order_B: Tensor
    """The sequences in the order of their rows."""
    inverse_order_B: Tensor
    """The place of each sequence in that order."""
    group_sizes: tuple[int, ...]
    """Sequences per block."""
    group_lengths: tuple[int, ...]
    """Tokens per sequence of each block, ascending."""

    def to_blocks(self, rows_TD: Float[Tensor, "t d"]) -> list[Float[Tensor, "_b _l d"]]:
        """One view per length."""
        shapes = list(zip(self.group_sizes, self.group_lengths, strict=True))
        pieces = torch.split(rows_TD, [size * length for size, length in shapes])
        return [piece.view(size, length, -1) for piece, (size, length) in zip(pieces, shapes, strict=True)]

    def from_blocks(self, blocks: Sequence[Float[Tensor, "_b _l d"]]) -> Float[Tensor, "t d"]:
        """Concatenate."""
        return join_blocks(blocks)

    def block_masks(self) -> list[Bool[Tensor, "_b 1 1 _l"] | None]:
        """Nothing to mask."""
        return [None] * len(self.group_sizes)

    def sort_sequences(self, memory_BND: Shaped[Tensor, " b *rest"]) -> Shaped[Tensor, " b *rest"]:
        """Sort by the length of the sequence that the rows belong to."""
        return gather_rows(memory_BND, self.order_B, self.inverse_order_B)

    def split_sequences(self, sorted_BND: Shaped[Tensor, " b *rest"]) -> list[Shaped[Tensor, " _b *rest"]]:
        """One view per block."""
        return list(torch.split(sorted_BND, list(self.group_sizes)))


def join_blocks(blocks: Sequence[Float[Tensor, "_b _l d"]]) -> Float[Tensor, "t d"]:
    """Lay blocks one behind the other as flat rows; one alone is not copied."""
    rows = [block.flatten(0, 1) for block in blocks]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def packed_layout(mask_BL: Bool[Tensor, "b l"], num_tokens: int | None = None, multiple: int = 1) -> PackedLayout:
    """Lay out the real tokens; `num_tokens` is how many there are (None: the device is asked, and waited for).

    There are rows for a multiple of `multiple` tokens, or for all cells: the first of padding fill them up.
    """
    batch, length = mask_BL.shape
    mask_R = mask_BL.reshape(-1)
    if num_tokens is None:
        num_tokens = int(mask_R.sum())
    num_rows = min(-(-num_tokens // multiple) * multiple, batch * length)
    padding_R = (~mask_R).cumsum(0).add_(num_tokens - 1).clamp_max_(num_rows)
    inverse_R = torch.where(mask_R, mask_R.cumsum(0) - 1, padding_R)
    cell_R = torch.arange(batch * length, device=mask_R.device)
    index_T = inverse_R.new_empty(num_rows + 1).scatter_(0, inverse_R, cell_R)[:-1]  # other padding: the last place
    starts = functional.pad(mask_BL.sum(1).cumsum(0), (1, 0))
    if multiple > 1:  # so many sequences of padding as are enough whatever the texts; most are empty
        more = torch.arange(1, 2 + (multiple - 2) // length, device=mask_R.device) * length
        starts = torch.cat([starts, (more + num_tokens).clamp_max_(num_rows)])
    return PackedLayout(
        batch=batch,
        length=length,
        mask_BL=mask_BL,
        starts=starts.int(),
        index_T=index_T,
        inverse_R=inverse_R,
        is_filled=multiple > 1,
    )


def grouped_layout(mask_BL: Bool[Tensor, "b l"]) -> GroupedLayout:
    """Lay out the real tokens, sequences sorted by length (ties in reading order)."""
    batch, length = mask_BL.shape
    length_B = mask_BL.sum(1)
    order_B = length_B.argsort(stable=True)
    place_T = mask_BL[order_B].nonzero()
    index_T = order_B[place_T[:, 0]] * length + place_T[:, 1]
    count_by_length = enumerate(length_B.bincount(minlength=1).tolist())
    groups = [(size, tokens) for tokens, size in count_by_length if size > 0]
    return GroupedLayout(
        batch=batch,
        length=length,
        mask_BL=mask_BL,
        index_T=index_T,
        inverse_R=invert(index_T, batch * length),
        order_B=order_B,
        inverse_order_B=invert(order_B, batch),
        group_sizes=tuple(size for size, _ in groups),
        group_lengths=tuple(tokens for _, tokens in groups),
    )


def text_layout(
    mask_BL: Bool[Tensor, "b l"], token_layout: str, num_tokens: int | None = None, multiple: int = 1
) -> PaddedLayout:
    """The layout that the config names; "auto": grouped on a CPU, packed elsewhere. The rest: of `packed_layout`.

    Graphs that are recorded (`torch.export`, `torch.compile`, `torch.jit.trace`) get the padded one: the shapes of the
    others depend on the lengths of the texts.
    """
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    # looked at on a CPU only: a GPU would have to be waited for
    is_counted = num_tokens is not None and not recorded and mask_BL.device.type == "cpu"
    assert not is_counted or num_tokens == int(mask_BL.sum()), "num_tokens: not those of this mask"
    if token_layout == "padded" or recorded:
        return PaddedLayout(batch=mask_BL.shape[0], length=mask_BL.shape[1], mask_BL=mask_BL)
    grouped = token_layout == "grouped" or (token_layout == "auto" and mask_BL.device.type == "cpu")
    return grouped_layout(mask_BL) if grouped else packed_layout(mask_BL, num_tokens, multiple)


def masked_mean(states_BLD: Float[Tensor, "b l d"], mask_BL: Bool[Tensor, "b l"]) -> Float[Tensor, "b d"]:
    """Mean over the real tokens of each sequence (every sequence has at least one)."""
    weight_BL = mask_BL.to(states_BLD.dtype)
    summed_BD = torch.bmm(weight_BL[:, None], states_BLD)[:, 0]
    return summed_BD / weight_BL.sum(1, keepdim=True)


def concatenate_padded(
    parts: Sequence[tuple[Shaped[Tensor, " _b *_rest"], Bool[Tensor, "_b _l"]]], value: float = 0
) -> tuple[Shaped[Tensor, " b *rest"], Bool[Tensor, "b l"]]:
    """Join batches of different lengths along the batch axis, so that one module call serves them all.

    The parts are pairs of a rectangle (B_i, L_i, …) with the same trailing dimensions and its mask (B_i, L_i); returned
    are a rectangle (Σ B_i, max L_i, …) with `value` in the new padding, and its mask.
    """
    longest = max(mask.shape[1] for _, mask in parts)
    rectangles = [
        functional.pad(cells, (0, 0) * (cells.ndim - 2) + (0, longest - cells.shape[1]), value=value)
        for cells, _ in parts
    ]
    masks = [functional.pad(mask, (0, longest - mask.shape[1])) for _, mask in parts]
    return torch.cat(rectangles), torch.cat(masks)


def gather_rows(
    rows: Shaped[Tensor, " n *rest"], index: Int[Tensor, " k"], inverse: Int[Tensor, " n"]
) -> Shaped[Tensor, " k *rest"]:
    """rows[index], where index n (one past the end) gives zeros; differentiable.

    Each row is taken at most once, and either every row is taken or no entry asks for zeros. `inverse`: for each row,
    where in `index` it stands; k if it is not taken.
    """
    taken: Tensor = _Gather.apply(rows, index, inverse)  # type: ignore[no-untyped-call]
    return taken


class _Gather(torch.autograd.Function):
    """A gather whose gradient is the gather by the inverse index."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        """Take rows; there are rows of zeros to give if the index is longer than the inverse."""
        ctx.save_for_backward(index, inverse)
        return _take(rows, index, index.shape[0] > inverse.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return _take(grad, inverse, inverse.shape[0] > index.shape[0]), None, None


def _take(rows: Tensor, index: Tensor, with_zeros: bool) -> Tensor:
    """rows[index], with one more row, of zeros, at the end if `with_zeros`."""
    if with_zeros:
        rows = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])
    return rows.index_select(0, index)


def invert(index_T: Tensor, size: int) -> Tensor:
    """For each of `size` cells its place in `index_T`, T where it has none."""
    inverse = index_T.new_full((size,), index_T.shape[0])
    inverse[index_T] = torch.arange(index_T.shape[0], device=index_T.device)
    return inverse
