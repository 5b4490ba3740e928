"""Losses that pull features to those of another model: each feature itself, or how it relates to the batch's others.

With similarities S_ij = s_i · s_j / τ of the student and T_ij of the teacher, both over the other rows j ≠ i of the
whole batch, P_i = softmax T_i and Q_i = softmax S_i, the relational loss has

    L = Σ_i Σ_j P_ij (log P_ij − log Q_ij)      dL/ds_j = Σ_k (Q_jk − P_jk + Q_kj − P_kj) s_k / τ

so that with the log-sum-exps of all rows each rank knows the whole gradient of its own rows, and nothing travels back.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from cclm.objectives.contrastive import widen

ROWS_PER_BLOCK = 1024
"""Of this rank, whose similarities to all rows are in memory at once."""
Relations: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Features of student (N, E) and teacher (N, T), and the number of each row (N)."""


class AllTaught(NamedTuple):
    """The rows of all ranks (and micro-batches), this one's among them; without gradient."""

    student_NE: Tensor
    teacher_NT: Tensor
    row_N: Tensor
    logs_N2: Tensor
    """`relation_logs` of all of them."""


def cosine_distance(
    student_NT: Float[Tensor, "n t"], teacher_NT: Float[Tensor, "n t"], is_known_N: Bool[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Sum of 1 − cosine over the rows of which the teacher has a feature; at least float32."""
    with torch.autocast(student_NT.device.type, enabled=False):
        cosine_N = functional.cosine_similarity(widen(student_NT), widen(teacher_NT), dim=1)
    return ((1.0 - cosine_N) * is_known_N).sum()


def relational_divergence(
    student_NE: Float[Tensor, "n e"],
    teacher_NT: Float[Tensor, "n t"],
    row_N: Int[Tensor, " n"],
    temperature: float,
    everything: AllTaught | None = None,
) -> Float[Tensor, ""]:
    """Σ over this rank's rows of KL(P_i ‖ Q_i), at least float32; summed over the ranks it is the batch's.

    Args:
        student_NE, teacher_NT: this rank's unit vectors; the student's take the gradient.
        row_N: number of each in the batch, -1 where the teacher has no feature: it is then nobody's row and column.
        everything: the rows of all ranks; None: these are all. The gradient is the true one where every rank
            multiplies its result by the same factor.
    """
    with torch.autocast(student_NE.device.type, enabled=False):
        own = student_NE.detach(), teacher_NT, row_N
        every = own if everything is None else everything[:3]
        logs_N2 = relation_logs(own, every, temperature)
        all_logs_M2 = logs_N2 if everything is None else everything.logs_N2
        blocks = zip(*(torch.split(one, ROWS_PER_BLOCK) for one in (*own, logs_N2)), strict=True)
        found = [_of_block((*mine,), logs_B2, every, all_logs_M2, temperature) for *mine, logs_B2 in blocks]
        reached = (widen(student_NE) * torch.cat([gradient_BE for _, gradient_BE in found])).sum()
        value = torch.stack([value for value, _ in found]).sum()
        return value + (reached - reached.detach())  # the value, and that gradient


def relation_logs(own: Relations, every: Relations, temperature: float) -> Float[Tensor, "n 2"]:
    """Return the log-sum-exps over the other rows of `every` of the student's and the teacher's similarities."""
    with torch.no_grad(), torch.autocast(own[0].device.type, enabled=False):
        blocks = zip(*(torch.split(one, ROWS_PER_BLOCK) for one in own), strict=True)
        return torch.cat([_similarities((*mine,), every, temperature)[0].logsumexp(2).mT for mine in blocks])


def _of_block(
    own: Relations, logs_B2: Tensor, every: Relations, all_logs_M2: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The divergence of some rows, and the gradient of the whole batch's with respect to their features."""
    logits_2BM, is_other_BM = _similarities(own, every, temperature)
    log_student_BM, log_teacher_BM = logits_2BM - logs_B2.T[:, :, None]
    back_student_BM, back_teacher_BM = (logits_2BM - all_logs_M2.T[:, None]).exp()
    weight_BM = log_teacher_BM.exp() * is_other_BM
    slope_BM = (log_student_BM.exp() + back_student_BM - back_teacher_BM) * is_other_BM - weight_BM
    value = (weight_BM * (log_teacher_BM - log_student_BM)).sum()
    return value, slope_BM @ widen(every[0]) / temperature


def _similarities(own: Relations, every: Relations, temperature: float) -> tuple[Tensor, Tensor]:
    """Both models' similarities (2, N, M), far below all others where a row is no other one; and where it is one."""
    is_other_NM = (own[2][:, None] != every[2]) & (own[2][:, None] >= 0) & (every[2] >= 0)
    pairs = zip(own[:2], every[:2], strict=True)
    logits_2NM = torch.stack([widen(mine) @ widen(theirs).T / temperature for mine, theirs in pairs])
    return logits_2NM.masked_fill(~is_other_NM, torch.finfo(logits_2NM.dtype).min / 2), is_other_NM


def relational_reference(
    student_NE: Float[Tensor, "n e"], teacher_NT: Float[Tensor, "n t"], row_N: Int[Tensor, " n"], temperature: float
) -> Float[Tensor, ""]:
    """The slow twin of `relational_divergence` where one process holds all rows: PyTorch's own gradient."""
    known_N = row_N >= 0
    total = student_NE.sum() * 0.0
    for number in known_N.nonzero()[:, 0].tolist():
        others_M = known_N & (torch.arange(len(row_N), device=row_N.device) != number)
        if others_M.any():
            log_student_M = (student_NE[others_M] @ student_NE[number] / temperature).log_softmax(0)
            log_teacher_M = (teacher_NT[others_M] @ teacher_NT[number] / temperature).log_softmax(0)
            total = total + (log_teacher_M.exp() * (log_teacher_M - log_student_M)).sum()
    return total
