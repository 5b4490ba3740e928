"""Convert published CCLM weights to our model, strictly: every key of the file is accounted for, or nothing is written.

    PATH.th ─ read (weights only) ─ sizes from the shapes ─ rename, stack, resize tables ─ report ─▶ HF folder

A key is *used* as it is, *converted* (stacked with others, reshaped, a table interpolated), or *dropped* for a reason
(an index that follows from the sizes, the second name of a shared tensor). A key that is left over, or one that is
missing, is an error.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from cclm.pretrained.bias_tables import resize_bias_table, resize_positions
from cclm.pretrained.published_names import (
    ONE_STACK,
    Weight,
    follows_from_sizes,
    pretrained_name,
    published_buffers,
    published_ties,
    published_weights,
    to_published,
)
from cclm.pretrained.published_sizes import ADVICE

Fate = Literal["used", "converted", "dropped"]
BIAS_TABLES = (".relative_position_bias_table", ".position.bias_table")
"""How the published and our own names of Swin's and BEiT's tables end."""
GRID_POSITIONS = "vision_encoder.positions"
"""Ours, of the "conv_vit" tower: a row for each cell of the grid."""


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
        reasons = Counter(entry.how for entry in self.keys if entry.fate == "dropped")
        dropped = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        return (
            f"{len(self.keys)} keys: {self.count('used')} used, {self.count('converted')} converted, "
            f"{self.count('dropped')} dropped ({dropped or 'none'})"
        )

    def as_json(self) -> str:
        """Return the text of import.json."""
        return json.dumps([asdict(entry) for entry in self.keys], indent=1) + "\n"


class LazyTensors(Mapping[str, Tensor]):
    """A state dict whose stacked tensors are put together each time they are read; the others stay in their file."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self.stored = stored

    def __getitem__(self, name: str) -> Tensor:
        """Return a view of a tensor in one part, a copy of several."""
        parts = self.stored[name].parts
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(self.stored[name].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def convert(
    published: Mapping[str, Tensor], options: ModelOptions, where: str = "state"
) -> tuple[LazyTensors, ImportReport]:
    """Turn a published state dict into ours (of a tied decoder only the bias), and tell the fate of every key.

    Window or image size may differ from the file's: bias tables are interpolated. What is not converted is shared.

    Raises:
        CheckpointError: a key that the model has no place for, one that is missing, a shape that does not fit, or two
            names of one tensor with different values.
    """
    name_of = {pretrained_name(name, published): name for name in published}
    published = {name: published[given] for name, given in name_of.items()}
    weights = published_weights(options)
    ties = {alias: name for alias, name in published_ties(options).items() if alias in published}
    wanted = [name for weight in weights for name in weight.theirs]
    _check_names(published, [*wanted, *ties], options, where)
    state, used = fit_weights({name: (value,) for name, value in published.items()}, weights, options, where)
    fates = {**dict(_drop(published, ties, where)), **used}
    return state, ImportReport(keys=[replace(fates[name], key=given) for name, given in name_of.items()])


def stored_tensors(published: Mapping[str, Tensor], options: ModelOptions) -> Mapping[str, StoredTensor]:
    """What `convert`, which has accepted `published`, gives, ready to be written piece by piece."""
    parts = {pretrained_name(name, published): (value,) for name, value in published.items()}
    return fit_weights(parts, published_weights(options), options, "file")[0].stored


def fit_weights(
    published: Mapping[str, Sequence[Tensor]], weights: Iterable[Weight], options: ModelOptions, where: str
) -> tuple[LazyTensors, dict[str, KeyFate]]:
    """Stack published tensors, each in one part or several, to ours, interpolate tables; say what became of each name
    (CheckpointError: a shape that does not fit).
    """
    ours = dict(meta_model(options).named_parameters())
    shapes = {name: tuple(value.shape) for name, value in to_published(ours, weights).items()}
    fates: dict[str, KeyFate] = {}
    stored = {}
    for weight in weights:
        flat: list[Tensor] = []
        for name in weight.theirs:
            parts, wanted = published[name], shapes[name]
            found = tuple(parts[0].shape) if len(parts) == 1 else (sum(map(len, parts)), *parts[0].shape[1:])
            _check_shape(name, found, wanted, where)
            changes = [f"stacked {len(weight.theirs)} to 1"] if len(weight.theirs) > 1 else []
            changes += ["reshaped to one dimension"] if weight.scalar else []
            if found != wanted:
                num_extra = 3 if options.vision.architecture == "beit" else 0
                is_grid = name == GRID_POSITIONS
                resized = resize_positions if is_grid else partial(resize_bias_table, num_extra=num_extra)
                parts = [resized(parts[0], wanted[0])]
                changes.append(f"interpolated, {found[0]} to {wanted[0]} rows")
            fate: Fate = "converted" if changes else "used"
            fates[name] = KeyFate(key=name, fate=fate, how=", ".join([weight.ours, *changes]))
            flat += [part.reshape(-1) for part in parts]
        shape = tuple(ours[weight.ours].shape)
        stored[weight.ours] = StoredTensor(shape=shape, dtype=flat[0].dtype, parts=tuple(flat))
    return LazyTensors(stored), fates


def meta_model(options: ModelOptions) -> CCLMModel:
    """The network without memory: names and shapes only."""
    with torch.device("meta"):
        return CCLMModel(CCLMConfig.from_options(options))


def describe(options: ModelOptions) -> list[tuple[str, tuple[int, ...], str, str]]:
    """Every key of a published file of these sizes: name, shape, dtype and "param", "buffer" or "tied:NAME"."""
    parameters = to_published(dict(meta_model(options).named_parameters()), published_weights(options))
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    rows = [(name, shape, "float32", "param") for name, shape in shapes.items()]
    rows += [(name, shape, dtype, "buffer") for name, (shape, dtype) in published_buffers(options).items()]
    rows += [(alias, shapes[name], "float32", f"tied:{name}") for alias, name in published_ties(options).items()]
    if options.vision.architecture != "swin" or options.masked_lm_head:
        return rows
    # A fine-tuned file: the encoder has lost its masked-LM shell.
    return [
        (name.replace(ONE_STACK, "text_encoder."), shape, dtype, kind.replace(ONE_STACK, "text_encoder."))
        for name, shape, dtype, kind in rows
    ]


def _check_names(published: Mapping[str, Tensor], wanted: Iterable[str], options: ModelOptions, where: str) -> None:
    known = {*wanted, *published_buffers(options)}
    missing = [name for name in wanted if name not in published]
    left_over = [name for name in published if name not in known and not follows_from_sizes(name)]
    if missing or left_over:
        raise CheckpointError(
            where=where,
            expected=f"the {len(known)} keys of a model with these sizes",
            got=" and ".join(filter(None, (_some("missing", missing), _some("left over", left_over)))),
            do=ADVICE,
        )


def _some(word: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {word} ({', '.join(names[:3])}{more})" if names else ""


def _drop(published: Mapping[str, Tensor], ties: Mapping[str, str], where: str) -> Iterable[tuple[str, KeyFate]]:
    """Keys that carry nothing new."""
    for name, value in published.items():
        if follows_from_sizes(name):
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


def _check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...], where: str) -> None:
    """Only tables of positions may differ, and only in their rows."""
    is_table = name.endswith(BIAS_TABLES) or name == GRID_POSITIONS
    if found != wanted and not (is_table and len(found) == 2 and found[1] == wanted[1]):
        raise CheckpointError(
            where=where,
            expected=f"{name} of shape {list(wanted)}",
            got=str(list(found)),
            do="Give the sizes of the model that the file holds.",
        )
