from __future__ import annotations

import random
from typing import Any

import pytest

from shards.parts import grouped


def plainly(items: Any) -> Any:
    groups: dict[str, list[int]] = {}
    for key, item in items:
        groups.setdefault(key, []).append(item)
    return groups


@pytest.mark.slow
@pytest.mark.parametrize("in_memory", [1, 7, 100, 5_000])
def test_what_is_spilled_equals_what_is_gathered_in_memory(in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.parts.NUM_FILES", 5)  # each level of the recursion opens so many
    drawn = random.Random(1)
    items = [(f"k{drawn.randrange(400)}", number) for number in range(3_000)]
    groups = list(grouped(iter(items), in_memory))
    assert len(groups) == len(dict(groups))
    assert dict(groups) == plainly(items)
    assert groups == list(grouped(iter(items), in_memory)), "the order is fixed"


def test_one_key_with_more_items_than_fit_comes_whole() -> None:
    assert list(grouped([("a", n) for n in range(500)], in_memory=3)) == [("a", list(range(500)))]


def test_no_items() -> None:
    assert list(grouped([])) == []


def test_few_items_keep_the_order_of_their_keys() -> None:
    assert [key for key, _ in grouped([("z", 1), ("a", 2), ("z", 3)])] == ["z", "a"]


def test_only_so_many_items_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source is read on only when what came before is spilled."""
    alive, most = set(), 0

    class Item:
        def __init__(self, number: int) -> None:
            nonlocal most
            alive.add(id(self))
            most = max(most, len(alive))

        def __del__(self) -> None:
            alive.discard(id(self))

        def __reduce__(self) -> Any:
            return (int, (1,))

    monkeypatch.setattr("shards.parts._ITEMS_PER_CHUNK", 2)
    monkeypatch.setattr("shards.parts.NUM_FILES", 8)
    groups = list(grouped(((str(n % 900), Item(n)) for n in range(4_000)), in_memory=300))
    assert sum(len(of_one) for _, of_one in groups) == 4_000
    assert most <= 300 + 2 * 8 + 2
