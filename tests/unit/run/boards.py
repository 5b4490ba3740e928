"""A board of one process, for tests of what ranks tell each other."""

from __future__ import annotations

from collections.abc import Sequence


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Shelf:
    """`cclm.run.talk.Board` in a dictionary; `is_gone` takes it away."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.is_gone = False

    def put(self, name: str, text: str) -> None:
        if self.is_gone:
            raise ConnectionError(name)
        self.texts[name] = text

    def claim(self, name: str, text: str) -> str:
        return self.texts.setdefault(name, text)

    def get(self, names: Sequence[str]) -> list[str]:
        return [self.texts.get(name, "") for name in names]
