"""Tensors that are made when somebody asks for them and are not kept: a conversion without a second copy in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor


class LazyTensors(Mapping[str, Tensor]):
    """A state dict whose values are computed anew each time they are read."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Tensor:
        """Make it."""
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of the makers."""
        return iter(self._makers)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._makers)
