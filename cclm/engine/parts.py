"""Parts of a training module, by prefixes of its parameters' names: "model.vision_encoder", "model.*.stack.layers.0".

A prefix is whole components; "*" is any one of them. A part can be frozen: it takes no gradient, has no moments, and is
neither decayed nor averaged, under every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from cclm.errors import ConfigError
from cclm.files.text import nearest_word


def freeze(module: nn.Module, prefixes: Sequence[str], where: str = "start.freeze") -> None:
    """Let no update move the parameters with one of these prefixes; a shared one has one by any of its names.

    Call it on every rank, before the module is given to an engine.

    Raises:
        ConfigError: no parameter has a prefix (it names the nearest), or none is left to train.
    """
    named = list(module.named_parameters(remove_duplicate=False))
    check_prefixes(prefixes, [name for name, _ in named], where)
    for name, parameter in named:
        if any(has_prefix(name, prefix) for prefix in prefixes):
            parameter.requires_grad_(False)
    if prefixes and not any(parameter.requires_grad for _, parameter in named):
        raise ConfigError(
            where=where, expected="something that is left to train", got=", ".join(prefixes), do="Freeze less."
        )


def check_reaches_trained(total: Tensor) -> None:
    """Raise ConfigError if a loss has no gradient: what it was computed with is frozen."""
    if not total.requires_grad:
        raise ConfigError(
            where="start.freeze",
            expected="losses of every update that reach something that is trained",
            got="an update whose losses reach frozen parameters only",
            do="Freeze less, or take that view away (data.schedule: alternate makes an update for each view).",
        )


def not_finite(module: nn.Module, gradient: Callable[[nn.Parameter], Tensor | None]) -> list[str]:
    """Return the names of the trained parameters with a gradient that is not finite; the host waits for the device."""
    found = [(name, gradient(one)) for name, one in module.named_parameters() if one.requires_grad]
    return [name for name, values in found if values is not None and not bool(values.isfinite().all())]


def longest_prefix(name: str, prefixes: Iterable[str]) -> str:
    """Return the prefix of a name with the most components; "" if none is."""
    fitting = [prefix for prefix in prefixes if has_prefix(name, prefix)]
    return max(fitting, key=lambda prefix: (prefix.count("."), len(prefix), prefix), default="")


def has_prefix(name: str, prefix: str) -> bool:
    """Whether the first components of a name are those of the prefix; "*" is any one component."""
    wanted, found = prefix.split("."), name.split(".")
    return len(wanted) <= len(found) and all(want in ("*", have) for want, have in zip(wanted, found, strict=False))


def check_prefixes(prefixes: Iterable[str], names: Sequence[str], where: str) -> None:
    """Raise ConfigError with the nearest one for each prefix that no name has."""
    known = {".".join(parts[:end]) for parts in (name.split(".") for name in names) for end in range(1, len(parts) + 1)}
    unknown = sorted(prefix for prefix in prefixes if not any(has_prefix(name, prefix) for name in names))
    if unknown:
        hints = ", ".join(f"{prefix!r} (nearest: {nearest_word(prefix, known, cutoff=0.0)!r})" for prefix in unknown)
        raise ConfigError(
            where=where, expected="prefixes of parameter names", got=hints, do=f"Correct them under {where}."
        )
