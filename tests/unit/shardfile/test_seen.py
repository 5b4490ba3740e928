"""Keys that came before are known, whatever shard they were in, and cost eight bytes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cclm.shardfile.verify import SeenKeys

keys = st.sampled_from([f"key-{number}" for number in range(12)] + ["ä", "\ud800"])


@given(st.lists(st.lists(keys, max_size=8), max_size=8))
def test_against_a_plain_set(shards: Any) -> None:
    seen, twin = SeenKeys(), set()
    for shard in shards:
        for key in shard:
            assert seen.add(key) == (key not in twin)
            twin.add(key)
        seen.end_shard()


def test_many_shards_leave_few_arrays() -> None:
    seen = SeenKeys()
    for shard in range(100):
        assert all(seen.add(f"{shard}-{number}") for number in range(10))
        seen.end_shard()
    assert len(seen._arrays) < 10, "a key is looked for in each"
    assert not seen.add("0-0") and not seen.add("99-9") and seen.add("100-0")
