"""Average the weights of models of one architecture: interpolation between two, soups of many.

    weight · A + weight · B + …   ─▶ export: a Hugging Face folder, checked in a fresh process

A model that is fine-tuned in English forgets some of its other languages; between it and the model that it started
from often lies one that is better than both (WiSE-FT, arXiv 2109.01903). Runs that differ in seed or settings make a
soup (arXiv 2203.05482). A head that only some of the models have (fine-tuning adds classes, and drops masked words) is
the average over these. One averaged model is held in memory; the others stay in their files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch import Tensor

from cclm.data.tokenizer_file import tokenizer_bytes
from cclm.engine.stored_weights import StoredTensor
from cclm.errors import CheckpointError, ConfigError
from cclm.hub.export import check_target, checkpoint_source, export
from cclm.hub.import_folder import folder_source
from cclm.hub.open import Prepared, is_export, prepare_export, prepare_run
from cclm.hub.parity import ParityReport
from cclm.hub.weight_files import Source, in_memory
from cclm.model.configuration_cclm import CCLMConfig

AVERAGE_NAME: Final = "average.json"
"""In the folder that is made: the models and their weights."""
SUM_TOLERANCE: Final = 1e-6
OF_TRAINING: Final = (
    *("source", "tower", "dropout", "attention_dropout", "drop_path", "keep_patches", "initializer_range"),
)
"""Options that change no output of a trained model, and may differ."""
HEADS: Final[Mapping[str, Any]] = {
    "pretraining_heads": False, "masked_lm_head": False, "tie_decoder": False, "masked_lm_norm_eps": None,
    "box_head": False, "num_classes": 0, "class_images": 1, "answer_decoder": False,
}  # fmt: skip
"""Options of heads, and their values in a model without that head."""


def average(models: Sequence[Path], weights: Sequence[float], to: Path) -> ParityReport:
    """Write the average of runs, checkpoints and exports to the folder `to`, as `export` does; weights: see `shares`.

    Raises:
        ConfigError: the models differ in more than their weights; each difference is named.
        CheckpointError: one of them is no model of ours, or `to` is something else than an export.
    """
    check_target(to)  # before anything long
    opened = [_open(model) for model in models]
    first = _with_all_heads([prepared for prepared, _ in opened])
    if problems := [
        text for model, (other, _) in zip(models, opened, strict=True) for text in _misfits(first, model, other)
    ]:
        raise ConfigError(
            where="cclm average", expected=f"models that differ from {models[0]} in their weights only",
            problems=problems, do="Average models of one architecture, tokenizer and image size.",
        )  # fmt: skip
    tied = first.config.options().tied_weights  # a checkpoint has them under both names, an export under one
    stored = {str(model): source() for model, (_, source) in zip(models, opened, strict=True)}
    shares = dict.fromkeys(stored, 0.0)
    for model, weight in zip(models, weights, strict=True):
        shares[str(model)] += weight  # of a model that is named twice both
    averaged = in_memory(_averaged(stored, shares, tied))
    return export(
        # Of no checkpoint: what a training engine computed once (`read_reference`) are outputs of one of the models.
        replace(first, origin=to, run_folder=None, checkpoint=None),
        to,
        source=averaged,
        papers=lambda parity: _papers(shares, _heads_of_some(stored, tied), parity),
    )


def shares(weights: Sequence[float], num_models: int) -> list[float]:
    """Return the weight of each model: none given: the same for all; one for two models: that of the second
    (ConfigError: fewer than two models, another number of weights, or weights whose sum is not 1).
    """
    if num_models < 2:
        raise ConfigError(where="cclm average", expected="two models or more", got="one", do="Name another one.")
    found = list(weights) or [1 / num_models] * num_models
    if len(found) == 1 and num_models == 2:
        found = [1 - found[0], found[0]]
    if len(found) != num_models or not abs(math.fsum(found) - 1) <= SUM_TOLERANCE:
        raise ConfigError(
            where="--weight",
            expected=f"{num_models} weights that add up to 1, or with two models the weight of the second",
            got=", ".join(f"{weight:g}" for weight in weights), do="Leave it out for equal weights.",
        )  # fmt: skip
    return found


def _open(model: Path) -> tuple[Prepared, Source]:
    if is_export(model):
        return prepare_export(model), folder_source(model)
    prepared = prepare_run(model)
    return prepared, checkpoint_source(prepared.origin)


def _with_all_heads(models: Sequence[Prepared]) -> Prepared:
    """Return the first model with the heads that any of them has."""
    options = [one.config.options() for one in models]
    heads = {
        key: next((value for one in options if (value := getattr(one, key)) != absent), absent)
        for key, absent in HEADS.items()
    }
    return replace(models[0], config=CCLMConfig.from_options(replace(options[0], **heads)))


def _misfits(first: Prepared, name: Path, other: Prepared) -> Iterator[str]:
    ours, theirs = (dict(_flat(asdict(one.config.options()))) for one in (first, other))
    for key in sorted({*ours, *theirs}):
        has_no_such_head = key in HEADS and theirs.get(key) == HEADS[key]
        if ours.get(key) != theirs.get(key) and not has_no_such_head and key.rpartition(".")[2] not in OF_TRAINING:
            yield f"{name}: {key} is {theirs.get(key)}, not {ours.get(key)}"
    for key in ("size", "resample", "mean", "std"):
        if getattr(first.transform, key) != getattr(other.transform, key):
            yield f"{name}: {key} of images is {getattr(other.transform, key)}, not {getattr(first.transform, key)}"
    if _vocabulary(first) != _vocabulary(other):
        yield f"{name}: another tokenizer ({other.tokenizer_folder})"


def _vocabulary(prepared: Prepared) -> dict[str, int]:
    """Return the ids of all pieces; the files themselves differ between a run and its export (digits, templates)."""
    return Tokenizer.from_buffer(tokenizer_bytes(prepared.tokenizer_folder)).get_vocab(with_added_tokens=True)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, value


def _averaged(
    stored: Mapping[str, Mapping[str, StoredTensor]], shares: Mapping[str, float], tied: Container[str]
) -> dict[str, Tensor]:
    """Return the averaged tensors but for second names, fp32; integers are the first model's.

    Summed in float64, so that the average of equal weights is these weights.
    """
    state = dict[str, Tensor]()
    for name in dict.fromkeys(name for one in stored.values() for name in one if name not in tied):
        have = {model: one[name] for model, one in stored.items() if name in one}
        model, first = next(iter(have.items()))
        if odd := [other for other, tensor in have.items() if tensor.shape != first.shape]:
            raise CheckpointError(
                where=name, expected=f"the shape {list(first.shape)}, as in {model}",
                got=f"{list(have[odd[0]].shape)} in {odd[0]}", do="Average models of one architecture.",
            )  # fmt: skip
        state[name] = _mean(have, shares).float() if first.dtype.is_floating_point else first.whole()
    return state


def _mean(have: Mapping[str, StoredTensor], shares: Mapping[str, float]) -> Tensor:
    """Return the weighted mean; of models that have no weight together, the plain one."""
    total = math.fsum(shares[model] for model in have)
    mean = torch.zeros(next(iter(have.values())).shape, dtype=torch.float64)
    for model, tensor in have.items():
        mean.add_(tensor.whole().double(), alpha=shares[model] / total if total else 1 / len(have))
    return mean


def _heads_of_some(stored: Mapping[str, Mapping[str, StoredTensor]], tied: Container[str]) -> dict[str, list[str]]:
    """Return the parts that not every model has, with those that have them."""
    parts = {model: {name.partition(".")[0] for name in one if name not in tied} for model, one in stored.items()}
    every = sorted(set().union(*parts.values()))
    having = {part: [model for model, own in parts.items() if part in own] for part in every}
    return {part: models for part, models in having.items() if len(models) < len(parts)}


def _papers(shares: Mapping[str, float], heads: Mapping[str, Sequence[str]], parity: ParityReport) -> dict[str, str]:
    rows = "\n".join(f"| {weight:g} | `{model}` |" for model, weight in shares.items())
    own = "".join(
        f"\nOnly of {', '.join(f'`{model}`' for model in models)}: `{part}`.\n" for part, models in heads.items()
    )
    text = f"""---
library_name: transformers
---
# An average of {len(shares)} cross-view language models

| weight | model |
|---|---|
{rows}
{own}
Made by `cclm average`; nothing was trained, and nothing is known about its quality that was not measured. A fresh
process with `transformers` alone computes the same: largest difference {parity.max_abs:.1e}.
"""
    facts = {"weights": dict(shares), "only_of": dict(heads)}
    return {"README.md": text, AVERAGE_NAME: json.dumps(facts, indent=1) + "\n"}
