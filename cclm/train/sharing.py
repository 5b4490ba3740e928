"""What ranks know of each other in an update: features and identities of all rows, from which hard negatives follow.

    told      by name, the tensors of each view that others need       (rows of this rank and micro-batch)
    shared    the same for the rows of all ranks and micro-batches     (two collectives, without gradient)
    block     states of the rows of the ranks that share a negative group, with their gradient

Rows are assigned to the ranks evenly, whatever the negative groups. Negatives are drawn from what is shared, inside
fixed groups of the global batch, so that a draw is the same wherever it is made. Names are `view/…`: `rows`, `counts`;
`memory`, `query`, `identity` of a pairing; `loss/number/first`, `second`, … of a contrast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from cclm.data.batch import ViewBatch
from cclm.data.config import LARGEST_GROUP_WITH_NOISE, Views, rank_blocks, rows_of_rank
from cclm.distributed.collectives import Collectives
from cclm.objectives.contrastive import first_components, widen
from cclm.objectives.matching import draw_negatives, has_negative
from cclm.ops.contrastive import AllRows, LogSums
from cclm.ops.contrastive_operator import log_sums
from cclm.ops.hard_negatives import draw_in_blocks
from cclm.train.teaching import logs_of_relations
from cclm.views.view import Contribution, Pairing, States

Named = Mapping[str, Tensor]


def told(name: str, batch: ViewBatch, part: Contribution, temperature: Tensor) -> dict[str, Tensor]:
    """Return what others need of this rank's share of a view."""
    slot_row_T = batch.masked.slot_T // batch.masked.tokens.ids_BL.shape[1]
    counts = [batch.counted_F[slot_row_T].sum()]
    if part.located is not None:
        counts.append(part.located.counted_F.sum())
    found = {f"{name}/rows": batch.row_R, f"{name}/counts": torch.stack(counts)[None]}
    for contrast in part.contrasts:
        for number, (first, second) in enumerate(contrast.pairs):
            key = f"{name}/{contrast.name}/{number}"
            found[f"{key}/first"], found[f"{key}/first_identity"] = first.feature_NE, first.identity_N
            found[f"{key}/second"], found[f"{key}/second_identity"] = second.feature_NE, second.identity_N
            found[f"{key}/scale"] = widen(temperature * contrast.temperature_factor).reciprocal()  # as in the loss
    if (pairing := part.pairing) is not None:
        found[f"{name}/memory"], found[f"{name}/query"] = pairing.memory.feature_BE, pairing.query.feature_BE
        found[f"{name}/identity"] = pairing.identity_R
    return found


def _logs_name(key: str, side: str, width: int | None) -> str:
    return f"{key}/{side}_logs{'' if width is None else width}"


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """Wrong partners of a view's fusion rows, by their numbers in the global batch."""

    query_F: Int[Tensor, " f"]
    memory_F: Int[Tensor, " f"]
    is_valid_F: Bool[Tensor, " f"]
    """False where the group holds nothing that shows another thing."""
    num_rows: int
    """Fusion rows of the global batch."""
    num_valid: Int[Tensor, ""]
    """Those of them that have a negative."""


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How an update's rows are assigned to ranks and micro-batches, and what these exchange."""

    collectives: Collectives
    configs: Views
    num_parts: int
    """Micro-batches."""
    log_sums: LogSums | None = log_sums
    """Of the contrasts; None: their losses need none."""
    widths: tuple[int, ...] = ()
    """Of features that are contrasted besides whole ones: their first components."""

    @property
    def is_alone(self) -> bool:
        """Whether one process holds all rows in one micro-batch."""
        return self.num_parts == self.collectives.world_size == 1

    def share(self, parts: Sequence[Named]) -> dict[str, Tensor]:
        """Exchange what the micro-batches of this rank tell, one after another, with the other ranks.

        Two collectives: what they tell; then the log-sum-exps of contrasts and relations, which need all of it
        (if any).
        """
        joined: dict[int, Tensor] = {}  # what has two names travels once
        own, scales = dict[str, Tensor](), dict[str, Tensor]()
        for name, tensor in parts[0].items():
            if name.endswith("/scale"):
                scales[name.removesuffix("/scale")] = tensor.detach()
                continue
            if id(tensor) not in joined:
                several = [part[name].detach() for part in parts]  # one alone stays: autocast joins no float16 as bf16
                joined[id(tensor)] = torch.cat(several) if len(several) > 1 else several[0]
            own[name] = joined[id(tensor)]
        shared = self._gather(own)
        if self.is_alone:
            return shared
        logs = logs_of_relations(own, shared, self.configs)
        for key, scale in scales.items():
            if self.log_sums is None:
                break
            for side, other in (("first", "second"), ("second", "first")):
                whole = widen(own[f"{key}/{side}"]), widen(shared[f"{key}/{other}"])
                shown = own[f"{key}/{side}_identity"], shared[f"{key}/{other}_identity"]
                for width in (None, *self.widths):
                    rows_NE, others_ME = (first_components(rows, width) for rows in whole)
                    found = self.log_sums(rows_NE, others_ME, scale.to(rows_NE.dtype)[0], *shown)
                    logs[_logs_name(key, side, width)] = found
        shared |= self._gather(logs) if logs else {}
        return {**shared, **{f"{name}_own": value for name, value in logs.items()}}

    def _gather(self, own: Named) -> dict[str, Tensor]:
        unique = {id(tensor): (name, tensor) for name, tensor in own.items()}
        tensors = [tensor for _, tensor in unique.values()]
        found = self.collectives.gather_packed(tensors, [self._rows_by_rank(*pair) for pair in unique.values()])
        by_id = dict(zip(unique, found, strict=True))
        return {name: by_id[id(tensor)] for name, tensor in own.items()}

    def _rows_by_rank(self, name: str, tensor: Tensor) -> list[int]:
        """Rows of a tensor on every rank: a multiple of the view's rows there, the same everywhere."""
        if name.endswith("/counts"):
            return [self.num_parts] * self.collectives.world_size
        rows = [self.num_parts * count for count in self.rows_of_part(name.partition("/")[0])]
        multiple, rest = divmod(tensor.shape[0], rows[self.collectives.rank])
        assert rest == 0, f"{name}: {tensor.shape[0]} rows of {rows[self.collectives.rank]}"
        return [count * multiple for count in rows]

    def rows_of_part(self, view: str) -> list[int]:
        """Return the rows of a view in a micro-batch on every rank."""
        count, size = self.configs[view].batch_size // self.num_parts, self.collectives.world_size
        return [len(rows_of_rank(count, rank, size)) for rank in range(size)]

    def all_rows(self, key: str, part: int, shared: Named, width: int | None = None) -> AllRows | None:
        """Return all rows of a contrast, for a micro-batch; None if it holds them all. `width`: of which the logarithms
        are; the features are whole."""
        if self.is_alone:
            return None
        first_logs, second_logs = (
            None if self.log_sums is None else (shared[f"{name}_own"].chunk(self.num_parts)[part], shared[name])
            for name in (_logs_name(key, side, width) for side in ("first", "second"))
        )
        return AllRows(
            first_NE=shared[f"{key}/first"],
            second_ME=shared[f"{key}/second"],
            identity_N=shared[f"{key}/first_identity"],
            identity_M=shared[f"{key}/second_identity"],
            first_logs=first_logs,
            second_logs=second_logs,
        )

    def negatives(
        self, name: str, batch: ViewBatch, pairing: Pairing, shared: Named, temperature: Tensor, hardness: float
    ) -> Negatives:
        """Draw, for each fusion row, a wrong query and a wrong memory inside its negative group. No collective."""
        config = self.configs[name]
        order = shared[f"{name}/rows"].argsort()
        memory_NE, query_NE, identity_N = (shared[f"{name}/{of}"][order] for of in ("memory", "query", "identity"))
        own_F, size = batch.matching_row_F, config.negative_group
        row_F = batch.row_R[own_F]
        has_negative_K = has_negative(identity_N.view(-1, size))
        with torch.no_grad(), torch.autocast(order.device.type, enabled=False):  # it would round what is widened
            scale = widen(temperature * pairing.temperature_factor)

            def draw(own_RE: Tensor, all_NE: Tensor, noise_FG: Tensor) -> Tensor:
                own_FE, all_NE = widen(own_RE[own_F]), widen(all_NE)
                if size > LARGEST_GROUP_WITH_NOISE:
                    groups = row_F // size, torch.arange(all_NE.shape[0], device=order.device) // size
                    uniform_F, factor = noise_FG[:, 0].double(), (hardness / scale)[0]
                    return draw_in_blocks(own_FE, all_NE, identity_N[row_F], identity_N, *groups, uniform_F, factor)
                start_F = row_F - row_F % size
                candidate_FG = start_F[:, None] + torch.arange(size, device=order.device)
                same_FG = identity_N[row_F][:, None] == identity_N[candidate_FG]
                similarity_FG = torch.einsum("fe,fge->fg", own_FE, all_NE[candidate_FG]) / scale
                return start_F + draw_negatives(similarity_FG, same_FG, noise_FG, hardness)

            query_F = draw(pairing.memory.feature_BE, query_NE, batch.noise_second_FG)
            memory_F = draw(pairing.query.feature_BE, memory_NE, batch.noise_first_FG)
        return Negatives(
            query_F=query_F,
            memory_F=memory_F,
            is_valid_F=has_negative_K[row_F // size],
            num_rows=config.matching_rows,
            num_valid=has_negative_K.sum() * config.rows_per_group,
        )

    def states_of_rows(
        self, view: str, part: int, states: States, row_F: Int[Tensor, " f"], length: int | None
    ) -> tuple[States, Int[Tensor, " f"]]:
        """Return states in which rows of this rank's negative groups stand, and where.

        They are `states` itself, if this rank holds whole groups; else those of all ranks that share them.

        With gradient. Two collectives, or none.
        `row_F`: numbers in the global batch. `length`: texts travel with so many tokens; None: all ranks have the same.
        """
        rows, own = self.rows_of_part(view), self.collectives.rank
        blocks = rank_blocks(sum(rows), self.configs[view].negative_group, self.collectives.world_size)
        block = next(ranks for ranks in blocks if own in ranks)
        own_F = row_F - (part * sum(rows) + sum(rows[: block.start]))  # a block's rows are neighbours
        if len(block) == 1:
            return states, own_F
        counts, (states_RLD, mask_RL) = [rows[rank] for rank in block], states
        if length is not None:  # behind it is padding only
            more = length - mask_RL.shape[1]
            states_RLD, mask_RL = functional.pad(states_RLD, (0, 0, 0, more)), functional.pad(mask_RL, (0, more))
        states_RLD = self.collectives.gather_block(states_RLD, block, counts)
        return (states_RLD, self.collectives.gather_block(mask_RL.to(torch.uint8), block, counts).bool()), own_F
