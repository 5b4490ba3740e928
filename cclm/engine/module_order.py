"""In which order a step runs the network's modules: what ZeRO-3 ranks must do alike, or they wait for ever."""

from __future__ import annotations

import hashlib
from array import array
from typing import Any

from torch import nn

NONE = "none"


class ModuleOrder:
    """Notes the modules of a step as they begin their forward pass, each as a number."""

    def __init__(self, module: nn.Module) -> None:
        named = dict(module.named_modules())
        self._names = list(named)
        self._numbers = {one: number for number, one in enumerate(named.values())}
        self._ran = array("i")
        self._last = array("i")

    def watch(self, offload: Any) -> None:
        """Listen in on ZeRO-3's hooks, which run before each module in any case: no hook is added."""
        before = offload.pre_sub_module_forward_function
        append, numbers = self._ran.append, self._numbers

        def noting(module: nn.Module) -> None:
            append(numbers.get(module, -1))
            before(module)

        offload.pre_sub_module_forward_function = noting

    def begin(self) -> None:
        """Say that a step begins."""
        del self._ran[:]

    def end(self) -> None:
        """Say that it is done."""
        self._last = self._ran[:]

    @property
    def text(self) -> str:
        """A short text about the last step; equal if the order was."""
        if not self._last:
            return NONE
        return f"{len(self._last)} modules ({hashlib.sha256(self._last.tobytes()).hexdigest()[:12]})"

    @property
    def names(self) -> list[str]:
        """The modules of the last step, in their order."""
        return [self._name(number) for number in self._last]

    def now(self) -> str:
        """The last module that began in this step; "" before the first."""
        return f"module {len(self._ran)} ({self._name(self._ran[-1])})" if self._ran else ""

    def _name(self, number: int) -> str:
        return (self._names[number] or "the whole") if number >= 0 else "another one"
