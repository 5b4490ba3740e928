"""Convert published CCLM weights to our model, strictly: every key of the file is accounted for, or nothing is written.

    PATH.th ─ read (weights only) ─ sizes from the shapes ─ rename, stack, resize tables ─ report ─▶ HF folder

A key is *used* as it is, *converted* (stacked with others, reshaped, a table interpolated), or *dropped* for a reason
(an index that follows from the sizes, the second name of a shared tensor). A key that is left over, or one that is
missing, is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from cclm.engine.stored_weights import StoredTensor
from cclm.errors import CheckpointError
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import ModelOptions
from cclm.pretrained.bias_tables import resize_bias_table
from cclm.pretrained.lazy_tensors import LazyTensors
from cclm.pretrained.published_names import (
    ONE_STACK,
    Weight,
    finetuned_name,
    pretrained_name,
    published_buffers,
    published_ties,
    published_weights,
    to_ours,
    to_published,
)
from cclm.pretrained.published_sizes import ADVICE

Fate = Literal["used", "converted", "dropped"]


@dataclass(frozen=True, kw_only=True)
class KeyFate:
    """What happened to one key of the file."""

    key: str
    fate: Fate
    how: str
    """Where it went, or why it was dropped."""


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """Every key of the file, in its order."""

    keys: list[KeyFate] = field(default_factory=list)

    def count(self, fate: Fate) -> int:
        """How many keys met this fate."""
        return sum(entry.fate == fate for entry in self.keys)

    def summary(self) -> str:
        """One line."""
        reasons: dict[str, int] = {}
        for entry in self.keys:
            if entry.fate == "dropped":
                reasons[entry.how] = reasons.get(entry.how, 0) + 1
        dropped = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        return (
            f"{len(self.keys)} keys: {self.count('used')} used, {self.count('converted')} converted, "
            f"{self.count('dropped')} dropped ({dropped or 'none'})"
        )

    def as_json(self) -> str:
        """All of it."""
        return json.dumps([asdict(entry) for entry in self.keys], indent=1) + "\n"


def convert(
    published: Mapping[str, Tensor], options: ModelOptions, where: str = "state"
) -> tuple[LazyTensors, ImportReport]:
    """Turn a published state dict into ours.

    Args:
        published: names and tensors of the file.
        options: of the model to fill. Its window or image size may differ from the file's: bias tables are
            interpolated.
        where: what to call the file in errors.

    Returns:
        Our state dict (of a tied decoder only the bias), tensors shared with `published` where nothing was converted,
        made anew at each access where something was; and the fate of every key.

    Raises:
        CheckpointError: a key that the model has no place for, one that is missing, a shape that does not fit, or two
            names of one tensor with different values.
    """
    name_of = {pretrained_name(name, published): name for name in published}
    published = {name: published[given] for name, given in name_of.items()}
    weights = published_weights(options)
    shapes = published_shapes(options, weights)
    ties = {alias: name for alias, name in published_ties(options).items() if alias in published}
    _check_shapes(published, [*shapes, *ties], options, where)
    fates = dict(_drop(published, ties, where))
    parts, used = fit_weights(published, weights, shapes, options, where)
    fates.update(used)
    keys = [replace(fates[name], key=given) for name, given in name_of.items()]
    return to_ours(parts, weights), ImportReport(keys=keys)


def stored_tensors(published: Mapping[str, Tensor], options: ModelOptions) -> dict[str, StoredTensor]:
    """What `convert` gives, ready to be written piece by piece: stacked tensors stay in their parts, in the file.

    Args:
        published: as for `convert`, which has accepted it.
        options: of the model.
    """
    published = {pretrained_name(name, published): value for name, value in published.items()}
    weights = published_weights(options)
    shapes = published_shapes(options, weights)
    ours = {name: tuple(value.shape) for name, value in meta_model(options).named_parameters()}
    parts, _ = fit_weights(published, weights, shapes, options, "file")
    return {
        weight.ours: StoredTensor(
            shape=ours[weight.ours],
            dtype=published[weight.theirs[0]].dtype,
            parts=tuple(parts[name].reshape(-1) for name in weight.theirs),
        )
        for weight in weights
    }


def fit_weights(
    published: Mapping[str, Tensor],
    weights: Iterable[Weight],
    shapes: Mapping[str, tuple[int, ...]],
    options: ModelOptions,
    where: str,
) -> tuple[LazyTensors, dict[str, KeyFate]]:
    """Bring published tensors to the wanted shapes when they are read; say what `to_ours` will then do with each.

    Raises:
        CheckpointError: a shape that does not fit.
    """
    fates: dict[str, KeyFate] = {}
    fitters: dict[str, Callable[[], Tensor]] = {}
    for weight in weights:
        for name in weight.theirs:
            before = published[name].shape
            _check_shape(name, tuple(before), shapes[name], where)
            changes = [f"stacked {len(weight.theirs)} to 1"] if len(weight.theirs) > 1 else []
            changes += ["reshaped to one dimension"] if weight.scalar else []
            changes += [f"interpolated, {before[0]} to {shapes[name][0]} rows"] if before != shapes[name] else []
            fate: Fate = "converted" if changes else "used"
            fates[name] = KeyFate(key=name, fate=fate, how=", ".join([weight.ours, *changes]))
            fitters[name] = partial(_fit, published, name, shapes[name], options)
            if before != shapes[name]:
                fitters[name]()  # a table that cannot be interpolated is refused here, not when it is read
    return LazyTensors(fitters), fates


def meta_model(options: ModelOptions) -> CCLMModel:
    """The network without memory: names and shapes only."""
    with torch.device("meta"):
        return CCLMModel(CCLMConfig(**asdict(options)))


def published_shapes(options: ModelOptions, weights: Iterable[Weight]) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter in a published file of these sizes."""
    ours = dict(meta_model(options).named_parameters())
    return {name: tuple(value.shape) for name, value in to_published(ours, list(weights)).items()}


def describe(options: ModelOptions) -> list[tuple[str, tuple[int, ...], str, str]]:
    """Every key of a published file of these sizes: name, shape, dtype and "param", "buffer" or "tied:NAME"."""
    shapes = published_shapes(options, published_weights(options))
    rows = [(name, shape, "float32", "param") for name, shape in shapes.items()]
    rows += [(name, shape, dtype, "buffer") for name, (shape, dtype) in published_buffers(options).items()]
    ties = published_ties(options)
    rows += [(alias, shapes[name], "float32", f"tied:{name}") for alias, name in ties.items()]
    if options.vision.architecture != "swin" or options.masked_lm_head:
        return rows
    return [
        (finetuned_name(name), shape, dtype, kind.replace(ONE_STACK, "text_encoder."))
        for name, shape, dtype, kind in rows
    ]


def _check_shapes(published: Mapping[str, Tensor], wanted: Iterable[str], options: ModelOptions, where: str) -> None:
    """Nothing may be missing and nothing may be left over."""
    known = {*wanted, *published_buffers(options)}
    missing = [name for name in wanted if name not in published]
    left_over = [name for name in published if name not in known and not _follows_from_sizes(name)]
    if missing or left_over:
        raise CheckpointError(
            where=where,
            expected=f"the {len(known)} keys of a model with these sizes",
            got=f"{_some('missing', missing)}{' and ' if missing and left_over else ''}{_some('left over', left_over)}",
            do=ADVICE,
        )


def _some(word: str, names: list[str]) -> str:
    """The first few of a list of names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {word} ({', '.join(names[:3])}{more})" if names else ""


def _follows_from_sizes(name: str) -> bool:
    """Whether a key is one of the buffers, whatever the resolution."""
    return name.endswith((".relative_position_index", ".attn_mask", ".position_ids"))


def _drop(published: Mapping[str, Tensor], ties: Mapping[str, str], where: str) -> Iterable[tuple[str, KeyFate]]:
    """Keys that carry nothing new."""
    for name, value in published.items():
        if _follows_from_sizes(name):
            yield name, KeyFate(key=name, fate="dropped", how="follow from the sizes")
        elif name in ties:
            if not torch.equal(value, published[ties[name]]):
                raise CheckpointError(
                    where=where,
                    expected=f"{name} to be equal to {ties[name]} (they are one parameter)",
                    got="different values",
                    do="The file is not of this family, or was damaged: get it again.",
                )
            yield name, KeyFate(key=name, fate="dropped", how="second names of a tensor")


def _fit(published: Mapping[str, Tensor], name: str, shape: tuple[int, ...], options: ModelOptions) -> Tensor:
    """The tensor in the wanted shape; a bias table may have to be interpolated."""
    value = published[name]
    if tuple(value.shape) == shape:
        return value
    return resize_bias_table(value, shape[0], 3 if options.vision.architecture == "beit" else 0)


def _check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...], where: str) -> None:
    """Only bias tables may differ, and only in their rows."""
    is_table = name.endswith(".relative_position_bias_table") and len(found) == 2 and found[1] == wanted[1]
    if found != wanted and not is_table:
        raise CheckpointError(
            where=where,
            expected=f"{name} of shape {list(wanted)}",
            got=str(list(found)),
            do="Give the sizes of the model that the file holds.",
        )
