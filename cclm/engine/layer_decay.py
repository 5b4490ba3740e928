"""How many blocks from its top each parameter of a tower stands: what a layer-wise learning rate goes by.

The blocks are the members of the innermost lists of modules of one class, in their order: a transformer's layers, the
blocks inside the stages of a Swin or ConvNeXt. The top block is 1, what stands below all of them (patches, words,
positions) one more than the lowest, what stands above them (final norm) 0. What stands between two blocks (a merging of
patches) counts to the lower one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from cclm.errors import ConfigError
from cclm.files.text import nearest_word

Height = tuple[str, int]
"""A tower's name, and the number of blocks down from its top."""
NO_HEIGHT: Height = ("", 0)


def heights(module: nn.Module, factors: Mapping[str, float]) -> dict[int, Height]:
    """Return the heights of all parameters (by identity) in the towers that `factors` names.

    Raises:
        ConfigError: there is no such tower, or it has no blocks; the nearest one that has is named.
    """
    towers = {name: (one, list(blocks_of(one))) for name, one in module.named_modules() if name} if factors else {}
    towers = {name: found for name, found in towers.items() if found[1]}
    if unknown := sorted(set(factors) - set(towers)):
        hints = (f"{name!r} (nearest: {nearest_word(name, towers, cutoff=0.0)!r})" for name in unknown)
        raise ConfigError(
            where="optimizer.layer_decay",
            expected="names of towers that have blocks",
            got=", ".join(hints),
            do="Name modules as in model.vision_encoder.",
        )
    found: dict[int, Height] = {}
    for name in sorted(factors, key=len):  # a tower inside another comes later, and wins
        tower, blocks = towers[name]
        found |= {key: (name, down) for key, down in _downs(tower, blocks).items()}
    return found


def blocks_of(tower: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks from the lowest to the top."""
    for child in tower.children():
        if isinstance(child, nn.ModuleList) and len({type(one) for one in child}) == 1:
            for one in child:
                yield from list(blocks_of(one)) or [one]
        else:
            yield from blocks_of(child)


def _downs(tower: nn.Module, blocks: Sequence[nn.Module]) -> dict[int, int]:
    """Blocks down from the top, by the parameter's identity."""
    down_of = {id(value): len(blocks) - number for number, block in enumerate(blocks) for value in block.parameters()}
    top, downs, current = list(blocks[-1].parameters())[-1], {}, len(blocks) + 1
    for parameter in tower.parameters():  # in the order of the modules
        current = down_of.get(id(parameter), current)
        downs[id(parameter)] = current
        if parameter is top:
            current = 0
    return downs
