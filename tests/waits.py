"""Where a step would make the host wait for a GPU, seen on a CPU; and where it does, on a GPU.

On a CPU every operation is looked at that on a GPU has to know a value, or how many there are, before it can go on:
`.item()`, `nonzero`, a boolean index, `unique` and what uses it inside; and tensors made of Python numbers for a
device, which are copied from pageable memory. On a GPU torch itself tells (`torch.cuda.set_sync_debug_mode`).
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.operators import call

ROOT = Path(__file__).resolve().parents[1]
OPERATORS = frozenset({
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique", "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::isin", "aten::bincount", "aten::equal",
    "aten::repeat_interleave", "aten::is_nonzero", "aten::multinomial",
})  # fmt: skip
"""isin: CUDA's calls unique. multinomial: CUDA's looks whether the weights are valid."""
INDEXING = frozenset(f"aten::{name}" for name in ("index", "index_put", "index_put_", "_index_put_impl_"))
METHODS: Mapping[Any, str] = {
    Tensor.tolist: "tolist",
    Tensor.numpy: "numpy",
    Tensor.cpu: "cpu",
    Tensor.new_tensor: "new_tensor",
    torch.tensor: "tensor",
    torch.as_tensor: "as_tensor",
}
"""What no operator shows on a CPU."""


class Waits:
    """Counts waits by operation and place, `("item", "cclm/model/packing.py:packed_layout")`."""

    def __init__(self) -> None:
        self.found: Counter[tuple[str, str]] = Counter()

    def add(self, what: str, place: str | None = None) -> None:
        self.found[what, place or place_of_caller()] += 1


def place_of_caller() -> str:
    """File and function of this repository, or of DeepSpeed, that is being run, the innermost but for tests."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        for root in (ROOT / "cclm", *(one for one in path.parents if one.name == "deepspeed")):
            if path.is_relative_to(root):
                return f"{path.relative_to(root.parent)}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


class _Operators(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        if name in OPERATORS:
            self._waits.add(name.removeprefix("aten::"))
        elif name in INDEXING and any(
            isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        ):
            self._waits.add("boolean index")
        return call(self, func, args, kwargs)


class _Functions(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = METHODS.get(func) if isinstance(func, Callable) else None  # type: ignore[arg-type]
        if name is not None and (not name.endswith("tensor") or name == "new_tensor" or "device" in (kwargs or {})):
            self._waits.add(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def waits_on_cpu() -> Iterator[Waits]:
    """Count what would wait on a GPU."""
    waits = Waits()
    with _Functions(waits), _Operators(waits):
        yield waits


@contextmanager
def waits_on_gpu() -> Iterator[Waits]:
    """Count what waits on this GPU."""
    waits, before = Waits(), torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in told:
        if "synchronizing CUDA operation" in str(warning.message):
            path = Path(warning.filename)
            shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(*path.parts[-3:])
            waits.add("synchronisation", f"{shown}:{warning.lineno}")
