"""One gradient for a table that is read twice: by the embedding at the start and by the decoder at the end.

Autograd makes two gradients of the whole table and adds them. The embedding's is zero but for the tokens of the batch:
with 250,002 pieces it is filled, added and freed for a few thousand rows that are not zero. Here backward passes the
decoder's gradient on, through a `Ticket`, and the embedding adds its rows to it:

    forward    embedding ── ticket ──► … layers … ──► lend(weight) ─► decoder
    backward   embedding adds rows, returns the sum ◄── ticket ── lend returns nothing ◄── decoder's gradient

Backward reaches the embedding, after the decoder, because what the decoder reads was computed of the embedding's rows.
By then the activations of all layers are gone: so a loss that can tell its gradient as a product of two matrices leaves
those, and the embedding multiplies.
Where no decoder left anything (it is not tied, or has no loss), the embedding makes the gradient that it always made.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cclm.ops.heap import make_room
from cclm.ops.linear_cross_entropy import LinearCrossEntropy, RowLosses


class Ticket:
    """Where the decoder leaves its gradient for the embedding of the same graph; it lives as long as the graph."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.dtype = weakref.ref(table), table.dtype
        self.gradient: Tensor | None = None
        self.factors: tuple[Tensor, Tensor] | None = None
        """Of the gradient, (T, V) and (T, D), before it is a matrix."""
        self.is_used = False

    def take(self) -> Tensor | None:
        """Return the gradient, once."""
        if self.factors is not None:
            residual_TV, scaled_TD = self.factors
            if residual_TV.device.type == "cpu":
                make_room(residual_TV.shape[1] * scaled_TD.shape[1] * scaled_TD.element_size())
            self.gradient, self.factors = _product(residual_TV, scaled_TD).to(self.dtype), None
        gradient, self.gradient = self.gradient, None
        return gradient


class WordTable:
    """The two readers of a table, as functions that a network and its loss compute with."""

    def __init__(self) -> None:
        self._ticket: weakref.ref[Ticket] | None = None

    def embedding(self, ids: Tensor, weight: Tensor, padding_idx: int | None) -> Tensor:
        """`torch.nn.functional.embedding`."""
        if not (torch.is_grad_enabled() and weight.requires_grad):
            return functional.embedding(ids, weight, padding_idx)
        ticket = Ticket(weight)
        self._ticket = weakref.ref(ticket)
        rows: Tensor = _Embedding.apply(ids, weight, padding_idx, ticket)  # type: ignore[no-untyped-call]
        return rows

    def lending(self, cross_entropy: Callable[..., RowLosses]) -> LinearCrossEntropy:
        """Return a loss of a decoder with the table as its weight, which may `defer` the table's gradient."""

        def lent(hidden: Tensor, weight: Tensor, bias: Tensor, label: Tensor, factor: Tensor | None) -> RowLosses:
            ticket = None if self._ticket is None else self._ticket()
            is_same = ticket is not None and not ticket.is_used and ticket.table() is weight
            if not (is_same and torch.is_grad_enabled()):
                return cross_entropy(hidden, weight, bias, label, factor)
            assert ticket is not None
            ticket.is_used = True
            known = weakref.ref(ticket)
            own: Tensor = _Lend.apply(weight, known)  # type: ignore[no-untyped-call]

            def defer(total: Tensor, residual_TV: Tensor, scaled_TD: Tensor) -> Tensor:
                same: Tensor = _Defer.apply(total, own, residual_TV, scaled_TD, known)  # type: ignore[no-untyped-call]
                return same

            return cross_entropy(hidden, own, bias, label, factor, defer=defer)

        return lent


class _Embedding(torch.autograd.Function):
    """Rows of a table; its gradient is added to what a decoder left."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding_idx: int | None, ticket: Ticket) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.num_rows, ctx.padding_idx, ctx.ticket = weight.shape[0], padding_idx, ticket
        return functional.embedding(ids, weight, padding_idx)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        table = ctx.ticket.take()
        padding = -1 if ctx.padding_idx is None else ctx.padding_idx
        if table is None:
            rows = torch.ops.aten.embedding_dense_backward(grad, ids, ctx.num_rows, padding, False)
            return None, rows, None, None
        ids_T, grad_TD = ids.flatten(), grad.flatten(0, -2)
        grad_TD = grad_TD.masked_fill((ids_T == padding)[:, None], 0.0)
        add_rows(table, ids_T, grad_TD)
        return None, table, None, None


def add_rows(table_VD: Tensor, ids_T: Tensor, rows_TD: Tensor) -> None:
    """Add rows to a table in place, those of one id summed in float32 first where the table is coarser than that."""
    if table_VD.dtype == torch.promote_types(table_VD.dtype, torch.float32):
        table_VD.index_add_(0, ids_T, rows_TD.to(table_VD.dtype))
        return
    sorted_T, order_T = ids_T.sort()
    is_first_T = torch.ones_like(sorted_T, dtype=torch.bool)
    is_first_T[1:] = sorted_T[1:] != sorted_T[:-1]
    segment_T = is_first_T.long().cumsum(0) - 1  # of each sorted row; there are as many places as rows, some stay zero
    summed_TD = torch.zeros_like(rows_TD, dtype=torch.float32)
    summed_TD.index_add_(0, segment_T, rows_TD[order_T].float())
    id_T = torch.zeros_like(sorted_T).index_copy_(0, segment_T, sorted_T)
    table_VD.index_add_(0, id_T, summed_TD.to(table_VD.dtype))


class _Lend(torch.autograd.Function):
    """The table itself; its gradient goes to the ticket, if that is still there."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ticket: weakref.ref[Ticket]) -> Tensor:
        ctx.set_materialize_grads(False)  # of what is deferred
        ctx.ticket = ticket
        return weight.view_as(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        ticket = ctx.ticket()
        if grad is None or ticket is None:
            return grad, None
        ticket.gradient = grad
        return None, None


class _Defer(torch.autograd.Function):
    """The loss itself; the gradient of the table goes to the ticket as two matrices, if that is still there."""

    @staticmethod
    def forward(
        ctx: Any, total: Tensor, weight: Tensor, residual_TV: Tensor, scaled_TD: Tensor, ticket: weakref.ref[Ticket]
    ) -> Tensor:
        ctx.save_for_backward(residual_TV, scaled_TD)
        ctx.ticket, ctx.dtype = ticket, weight.dtype
        return total.view_as(total)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        residual_TV, scaled_TD = ctx.saved_tensors
        factors, ticket = (residual_TV, scaled_TD * grad.to(scaled_TD.dtype)), ctx.ticket()
        if ticket is None:
            return grad, _product(*factors).to(ctx.dtype), None, None, None
        ticket.factors = factors
        return grad, None, None, None, None


def _product(residual_TV: Tensor, scaled_TD: Tensor) -> Tensor:
    return residual_TV.T @ scaled_TD
