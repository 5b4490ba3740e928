"""A device that is no CPU, on any machine: its tensors hold CPU tensors, and computing among both kinds is noted.

What a GPU would refuse ("expected all tensors to be on the same device") so shows without one: the code takes the
branches that it takes for any device but a CPU, and the values are those of a CPU. Not seen: CUDA's own kernels,
streams, bf16 under autocast. A process can have one such device (torch calls backends of Python experimental): use one
of its own.

    python -m tests.other_device SETTINGS.yaml other|cpu     # trains to the end; prints losses, and what was mixed
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "other"
MOVES = frozenset({"aten::copy_", "aten::_to_copy"})
"""Operators that may see both devices."""


class OtherTensor(Tensor):
    """A tensor of the other device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OtherTensor:
        """Wrap a CPU tensor."""
        wrapped: OtherTensor = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        wrapped.held = held
        return wrapped

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[Any, Any] | None = None
    ) -> Any:
        """Compute with what the tensors hold; nothing is noted: outside of `other_device`."""
        return _compute(func, args, kwargs or {})


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OtherTensor) else value


def _is_other(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _compute(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call an operator on what the tensors hold, and wrap what comes."""
    asked, name = kwargs.get("device"), func._schema.name
    others = [value for value in tree_leaves((args, kwargs)) if isinstance(value, OtherTensor)]
    stays = isinstance(args[0], OtherTensor) if name == "aten::copy_" else bool(others)
    on_other = _is_other(asked) if asked is not None else stays
    on_cpu = {
        key: torch.device("cpu") if key == "device" and value is not None else value for key, value in kwargs.items()
    }
    found = func(*tree_map(_held, tuple(args)), **tree_map(_held, on_cpu))
    if on_other and any(found is other.held for other in others) and name == "aten::_to_copy":
        found = found.clone()
    known = {id(other.held): other for other in others}

    def wrap(value: Any) -> Any:
        if not on_other or not isinstance(value, Tensor):
            return value
        return known[id(value)] if id(value) in known else OtherTensor(value)

    return tree_map(wrap, found)


class _Operators(TorchDispatchMode):
    """Notes operators that mix devices; a tensor of no dimension may come from a CPU, as on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        tensors = [value for value in tree_leaves((args, kwargs or {})) if isinstance(value, Tensor)]
        others = [isinstance(value, OtherTensor) for value in tensors]
        if any(others) and func._schema.name not in MOVES:
            wrong = [value for value, other in zip(tensors, others, strict=True) if not other and value.ndim]
            self.mixed |= {f"{func._schema.name} at {_place()}" for _ in wrong}
        return _compute(func, args, kwargs or {})


def _place() -> str:
    """Innermost line of the library that is being run."""
    frame = sys._getframe(2)
    while frame.f_back is not None and "/cclm/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/cclm/')[2]}:{frame.f_lineno}"


class _Functions(TorchFunctionMode):
    """What torch does below its dispatcher: tensors and places of Python numbers, and lists of a tensor's values."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_other(given.get("device")):
            device = given.pop("device")
            return func(*args, **given).to(device)
        if func is Tensor.new_tensor and isinstance(args[0], OtherTensor):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **given}).to(args[0].device)
        if func is Tensor.__getitem__ and isinstance(args[0], OtherTensor):
            whole, index = args
            places = index if isinstance(index, tuple) else (index,)
            moved = (torch.tensor(place).to(whole.device) if isinstance(place, list) else place for place in places)
            args = (whole, tuple(moved))
        if func in (Tensor.tolist, Tensor.__format__) and isinstance(args[0], OtherTensor):
            args = (args[0].held, *args[1:])
        return func(*args, **given)


@contextmanager
def other_device() -> Iterator[set[str]]:
    """Let `torch.device("other")` be there; yields what mixed devices, a growing set."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]
    torch.__future__.set_swap_module_params_on_conversion(True)  # else tied weights come apart
    operators = _Operators()
    with _Functions(), operators:
        yield operators.mixed


def _train(settings: Path) -> list[float]:
    from tests.tiny_training import read, run_to_the_end

    config = read(str(settings))
    assert run_to_the_end(config)
    lines = (Path(config.run_folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["values"]["loss"] for line in lines]


def _main(settings: str, device: str) -> None:
    import cclm.distributed.topology
    import cclm.model.layers

    if device == "cpu":
        sys.stdout.write(json.dumps({"losses": _train(Path(settings)), "mixed": []}))
        return
    cclm.distributed.topology._choose_device = lambda *_: torch.device(NAME, 0)
    cclm.model.layers.forget = lambda *_, **__: None  # it empties storages, which these tensors have none of
    with other_device() as mixed:
        losses = _train(Path(settings))
    sys.stdout.write(json.dumps({"losses": losses, "mixed": sorted(mixed)}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
