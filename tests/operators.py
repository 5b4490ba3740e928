"""Look into our operators as a dispatch mode sees the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

CPU_KERNEL = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def call(mode: TorchDispatchMode, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    """Call what a mode was asked about; what an operator of ours does inside, on a CPU, the mode sees, too."""
    if func.namespace != "cclm":
        return func(*args, **(kwargs or {}))
    with mode:
        return func.redispatch(CPU_KERNEL, *args, **(kwargs or {}))
