"""Padded rectangles (B, L, D) and flat rows (T, D): where each token stands.

Most texts are far shorter than the longest of a batch, so linears and norms run on flat rows of real tokens only, and
attention alone works on the rectangle:

    ids (B, L) → embed → rows (T, D) → [ qkv → rectangle → attention → rows → ... ] × layers → rectangle (B, L, D)

A `Layout` is one way to lay tokens out. `packed_layout` is the fast one, `padded_layout` its slow twin (T = B · L, rows
of padding included); layers are written once and do not know which one they got. Both ways of moving are gathers in
forward *and* backward (each is the other's gradient), because the scatter that autograd would use is slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

try:  # noqa: SIM105  # annotations only: an exported checkpoint loads without it, and HF skips imports in a try
    from jaxtyping import Bool, Float, Int, Shaped
except ImportError:
    pass


class _Gather(torch.autograd.Function):
    """rows[index], whose gradient is grad[inverse] with rows of zeros where inverse says so."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor, zero_row: bool) -> Tensor:
        """Take rows; with `zero_row` the index len(rows) means a row of zeros. Exactly one direction has such rows."""
        ctx.save_for_backward(inverse)
        ctx.zero_row = zero_row
        return _take(rows, index, zero_row)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The transposed movement, again a gather."""
        (inverse,) = ctx.saved_tensors
        return _take(grad, inverse, not ctx.zero_row), None, None, None


def _take(rows: Tensor, index: Tensor, zero_row: bool) -> Tensor:
    """rows[index], where index len(rows) means zeros if `zero_row`."""
    if zero_row:
        rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return rows.index_select(0, index)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the flat rows of a batch stand in its rectangle."""

    batch: int
    """B: sequences."""
    length: int
    """L: columns of the rectangle."""
    mask_BL: Tensor | None
    """True where a token is real; None: everywhere."""
    index_T: Tensor | None = None
    """Flat cell b · L + l of each row; None: the rows are the whole rectangle in order."""
    inverse_R: Tensor | None = None
    """Row of each of the R = B · L cells, T (one past the last row) where the cell is padding."""

    @property
    def attention_mask(self) -> Tensor | None:
        """Bool (B, 1, 1, L) for attention over these tokens as keys."""
        return None if self.mask_BL is None else self.mask_BL[:, None, None, :]

    def to_rows(self, rectangle_BLD: Float[Tensor, "b l d"]) -> Float[Tensor, "t d"]:
        """Flatten; drops the padding if packed."""
        cells_RD = rectangle_BLD.reshape(self.batch * self.length, rectangle_BLD.shape[-1])
        if self.index_T is None:
            return cells_RD
        rows: Tensor = _Gather.apply(cells_RD, self.index_T, self.inverse_R, False)  # type: ignore[no-untyped-call]
        return rows

    def to_rectangle(self, rows_TD: Float[Tensor, "t d"]) -> Float[Tensor, "b l d"]:
        """Lay the rows out; padding is zero."""
        if self.index_T is None:
            rectangle_BLD = rows_TD.view(self.batch, self.length, -1)
            return rectangle_BLD if self.mask_BL is None else rectangle_BLD.masked_fill(~self.mask_BL[..., None], 0.0)
        cells: Tensor = _Gather.apply(rows_TD, self.inverse_R, self.index_T, True)  # type: ignore[no-untyped-call]
        return cells.view(self.batch, self.length, -1)

    def take_ids(self, ids_BL: Int[Tensor, "b l"]) -> Int[Tensor, " t"]:
        """The integers of a rectangle (token ids, positions) as flat rows."""
        flat = ids_BL.reshape(-1)
        return flat if self.index_T is None else flat[self.index_T]


def packed_layout(mask_BL: Bool[Tensor, "b l"]) -> Layout:
    """Rows are the real tokens only, in reading order. Waits for the device (it must know T)."""
    mask_R = mask_BL.reshape(-1)
    index_T = mask_R.nonzero()[:, 0]
    inverse_R = torch.full_like(mask_R, index_T.shape[0], dtype=torch.int64)
    inverse_R[index_T] = torch.arange(index_T.shape[0], device=mask_BL.device)
    batch, length = mask_BL.shape
    return Layout(batch=batch, length=length, mask_BL=mask_BL, index_T=index_T, inverse_R=inverse_R)


def padded_layout(mask_BL: Bool[Tensor, "b l"]) -> Layout:
    """The slow twin: rows are all cells, padding included."""
    batch, length = mask_BL.shape
    return Layout(batch=batch, length=length, mask_BL=mask_BL)


def full_layout(batch: int, length: int) -> Layout:
    """Rows are all cells and all are real (image tokens)."""
    return Layout(batch=batch, length=length, mask_BL=None)


def text_layout(mask_BL: Bool[Tensor, "b l"], packed: bool) -> Layout:
    """The layout that the config asks for."""
    return packed_layout(mask_BL) if packed else padded_layout(mask_BL)


def masked_mean(states_BLD: Float[Tensor, "b l d"], mask_BL: Bool[Tensor, "b l"]) -> Float[Tensor, "b d"]:
    """Mean over the real tokens of each sequence (every sequence has at least one)."""
    weight_BL = mask_BL.to(states_BLD.dtype)
    summed_BD = torch.bmm(weight_BL[:, None], states_BLD)[:, 0]
    return summed_BD / weight_BL.sum(1, keepdim=True)


def concatenate_padded(
    parts: Sequence[tuple[Shaped[Tensor, " _b *_rest"], Bool[Tensor, "_b _l"]]],
) -> tuple[Shaped[Tensor, " b *rest"], Bool[Tensor, "b l"]]:
    """Join batches of different lengths along the batch axis, so that one module call serves them all.

    Args:
        parts: pairs of a rectangle (B_i, L_i) or (B_i, L_i, D) and its mask (B_i, L_i).

    Returns:
        The rectangle (Σ B_i, max L_i[, D]), zeros in the new padding, and its mask.
    """
    longest = max(mask.shape[1] for _, mask in parts)
    values = [functional.pad(value, (0, 0) * (value.ndim - 2) + (0, longest - value.shape[1])) for value, _ in parts]
    masks = [functional.pad(mask, (0, longest - mask.shape[1])) for _, mask in parts]
    return torch.cat(values), torch.cat(masks)
