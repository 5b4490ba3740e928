"""Start a model from the weights of others, parameter by parameter.

    Swin or BEiT-v2 ──▶ image tower             XLM-R, BERT ──▶ text encoder (3M/4M: fusion layers, masked-LM head too)
    any other model ──▶ "hf" towers             X2-VLM ──▶ image tower, cross encoder, heads (its text tower is English)
    an export or import of ours ──▶ everything that fits

Every source is first placed under the published names, then converted as any published file. What no source gives keeps
its fresh start; its names are those that trained at `lr_mult` times the learning rate. Sources are mapped into memory,
and under ZeRO-3 one rank reads one tensor at a time: no rank ever holds a second copy of the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cclm.engine.deepspeed.construction import whole_parameters
from cclm.engine.stored_weights import StoredTensor
from cclm.errors import CheckpointError
from cclm.model.options import ModelOptions
from cclm.pretrained.import_cclm import ImportReport, KeyFate, LazyTensors, fit_weights, meta_model
from cclm.pretrained.options import Layers, Reach
from cclm.pretrained.published_names import Weight, published_weights
from cclm.pretrained.source_files import open_source
from cclm.pretrained.source_names import IMAGE_TOWER, OUR_MARK, TEXT_TOWER, WORDS, Placement, place_source

DECODER, CLASSES = "answer_decoder.", "class_head."
HEADS = (
    DECODER,
    "box_head.",
    CLASSES,
    "image_projection.",
    "masked_lm_",
    "matching_head.",
    "temperature.",
    "text_projection.",
)
"""What a model that starts from another of ours may lack: the heads of another task."""
VOCABULARY = (".word_embeddings.weight", "predictions.bias", "predictions.decoder.weight")
"""How the published names of tables end that have a row for each word."""


def source_weights(
    sources: Iterable[str | Path], options: ModelOptions, reach: Reach = "auto", layers: Layers = "spread"
) -> tuple[LazyTensors, ImportReport]:
    """Turn sources into (part of) a state dict of ours, whose tensors are read when they are asked for.

    Arguments are as in `StartConfig`. Returned is the fate of every key of every source, too.

    Raises:
        CheckpointError: a source of another kind, or sizes that do not fit.
    """
    found: dict[str, StoredTensor] = {}
    fates: list[KeyFate] = []
    for source in sources:
        state = open_source(source)
        is_ours = OUR_MARK in state
        placed = {} if is_ours else place_source(state, options, str(source), reach, layers)
        given = _own_weights(options, state, str(source)) if is_ours else _given_weights(options, placed, str(source))
        placed |= {key: (key,) for weight in given for key in weight.theirs if is_ours}
        used = {key: name for name, keys in placed.items() for key in keys}
        fates += [
            KeyFate(key=key, fate="used" if key in used else "dropped", how=used.get(key, "not of this model"))
            for key in state
        ]
        parts = {name: [_needed_rows(name, state[key], options) for key in keys] for name, keys in placed.items()}
        found.update(fit_weights(parts, given, options, str(source))[0].stored)
    return LazyTensors(found), ImportReport(keys=fates)


def start_model(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Write `state` into the parameters, whole or sharded by ZeRO-3, of the same names; return the others' names."""
    fresh = []
    for name, parameter in model.named_parameters():
        if name not in state:
            fresh.append(name)
            continue
        with whole_parameters([parameter]) as writes, torch.no_grad():
            if writes:
                parameter.copy_(state[name])
    return fresh


def _needed_rows(name: str, value: Tensor, options: ModelOptions) -> Tensor:
    """Leave out rows of a table that nothing looks up: other token types, words behind the tokenizer's ids."""
    if name.endswith(".token_type_embeddings.weight") and not name.startswith(TEXT_TOWER):
        return value[:1]
    return value[: options.text.vocab_size] if name.endswith(VOCABULARY) or name == WORDS else value


def _given_weights(options: ModelOptions, placed: Placement, where: str) -> list[Weight]:
    """The parameters that were placed whole (CheckpointError: something was placed that this model has not, or has in
    part).
    """
    table = [Weight(name, (name,)) for name in placed if name.startswith((IMAGE_TOWER, TEXT_TOWER, WORDS))]
    table += published_weights(options)
    ours = {name for name, _ in meta_model(options).named_parameters()}
    given = [weight for weight in table if weight.ours in ours and all(name in placed for name in weight.theirs)]
    if unfit := sorted(set(placed).difference(*(weight.theirs for weight in given))):
        raise _unfit(where, unfit[0], "Give sources of the family's sizes.")
    return given


def _own_weights(options: ModelOptions, state: Mapping[str, Tensor], where: str) -> list[Weight]:
    """Say which parameters a model of ours gives: those of the same names, and those that fine-tuning copies.

    A fusion encoder for several memories has each layer once for each of them; an answer decoder begins as the fusion
    layers, the embeddings and the masked-LM head. A head for another number of classes gives nothing.

    Raises:
        CheckpointError: a part of the source other than a head has no place in this model.
    """
    layer = re.compile(r"(fusion_encoder\.stack\.layers\.)(\d+)(\..+)")
    num_layers = 1 + max((int(match[2]) for match in map(layer.fullmatch, state) if match), default=-1)
    copies = options.fusion.num_memories if num_layers == options.fusion.num_layers else 1
    has_decoder = any(name.startswith(DECODER) for name in state)
    weights, model = [], meta_model(options)
    sizes = {name: parameter.shape for name, parameter in model.named_parameters() if name.startswith(CLASSES)}
    others = CLASSES if any(state[name].shape != size for name, size in sizes.items() if name in state) else ()
    for name, _ in model.named_parameters():
        if name.startswith(others):
            continue
        key = name
        if match := layer.fullmatch(name):
            key = f"{match[1]}{int(match[2]) // copies}{match[3]}"
        elif name.startswith(DECODER) and not has_decoder:
            key = name.removeprefix(DECODER).replace("embeddings.", "text_encoder.embeddings.")
            key = key.replace("stack.", "fusion_encoder.stack.")
        if key in state:
            weights.append(Weight(name, (key,)))
    used = {key for weight in weights for key in weight.theirs}
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)} | set(model.state_dict())
    if unfit := sorted(name for name in {*state} - used - known if not name.startswith(HEADS)):
        raise _unfit(where, unfit[0], "Give a source of the same architecture.")
    return weights


def _unfit(where: str, name: str, do: str) -> CheckpointError:
    expected = "weights for places that this model has"
    return CheckpointError(where=where, expected=expected, got=f"others, such as {name}", do=do)
