"""Start a model from the weights of others, parameter by parameter.

    Swin or BEiT-v2 ──▶ image tower             XLM-R ──▶ text encoder (3M/4M: fusion layers and masked-LM head too)
    any image model ──▶ "hf" tower              X2-VLM ──▶ image tower, cross encoder, heads (its text tower is English)
    an export or import of ours ──▶ everything that fits

Every source is first placed under the published names, then converted as any published file. What no source gives keeps
its fresh start; its names are those that trained at `lr_mult` times the learning rate. Sources are mapped into memory,
and under ZeRO-3 one rank reads one tensor at a time: no rank ever holds a second copy of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cclm.engine.deepspeed.construction import whole_parameters
from cclm.engine.stored_weights import StoredTensor
from cclm.errors import CheckpointError
from cclm.model.options import ModelOptions
from cclm.pretrained.import_cclm import ImportReport, KeyFate, LazyTensors, fit_weights, meta_model
from cclm.pretrained.options import Reach
from cclm.pretrained.published_names import Weight, published_weights
from cclm.pretrained.source_files import open_source
from cclm.pretrained.source_names import OUR_MARK, Placement, place_source
from cclm.pretrained.towers import TOWER


def source_weights(
    sources: Iterable[str | Path], options: ModelOptions, reach: Reach = "auto"
) -> tuple[LazyTensors, ImportReport]:
    """Open sources and turn them into (part of) a state dict of ours, whose tensors are read when they are asked for.

    Args:
        sources: as `StartConfig.sources`.
        options: the model to start.
        reach: which stacks an XLM-R fills.

    Returns:
        What the sources give, by our names; and the fate of every key of every source.

    Raises:
        CheckpointError: a source of another kind, or sizes that do not fit.
    """
    found: dict[str, StoredTensor] = {}
    fates: list[KeyFate] = []
    for source in sources:
        state = open_source(source)
        placed = place_source(state, options, str(source), reach)
        used = {key: name for name, keys in placed.items() for key in keys}
        fates += [
            KeyFate(key=key, fate="used" if key in used else "dropped", how=used.get(key, "not of this model"))
            for key in state
        ]
        parts = {name: [state[key] for key in keys] for name, keys in placed.items()}
        given = _given_weights(options, placed, str(source))
        found.update(fit_weights(parts, given, options, str(source))[0].stored)
    return LazyTensors(found), ImportReport(keys=fates)


def start_model(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Write `state` into the parameters of the same names; return the names of the others, which stay as they are.

    Args:
        model: with its parameters whole, or sharded by ZeRO-3.
        state: tensors by name, of the parameters' shapes; read one at a time.
    """
    fresh = []
    for name, parameter in model.named_parameters():
        if name not in state:
            fresh.append(name)
            continue
        with whole_parameters([parameter]) as writes, torch.no_grad():
            if writes:
                parameter.copy_(state[name])
    return fresh


def _given_weights(options: ModelOptions, placed: Placement, where: str) -> list[Weight]:
    """The parameters that were placed whole.

    Raises:
        CheckpointError: something was placed that this model has not, or has in part.
    """
    names = placed if OUR_MARK in placed else [name for name in placed if name.startswith(TOWER)]
    table = [Weight(name, (name,)) for name in names]
    table += [] if OUR_MARK in placed else published_weights(options)
    ours = {name for name, _ in meta_model(options).named_parameters()}
    given = [weight for weight in table if weight.ours in ours and all(name in placed for name in weight.theirs)]
    if unfit := sorted(set(placed).difference(*(weight.theirs for weight in given))):
        raise CheckpointError(
            where=where,
            expected="weights for places that this model has",
            got=f"others, such as {unfit[0]}",
            do="Give sources of the family's sizes.",
        )
    return given
