"""What a run has seen, by source and language."""

from __future__ import annotations

import pytest

from cclm.data.counts import SamplesSeen
from cclm.data.options import MixConfig
from tests.parity.plain_stream import drawn_before
from tests.tiny_views import Views, change, open_dataset


@pytest.fixture
def weighted(views: Views) -> Views:
    return change(views, "image_text", mix=MixConfig(language_weights={"en": 3.0, "de": 1.0}))


def test_what_is_shown_is_counted_exactly(weighted: Views) -> None:
    dataset = open_dataset(weighted)
    samples_seen = SamplesSeen(dataset.counted)
    for step in range(12):
        samples_seen.add(dataset[step].samples_seen)
    seen = samples_seen.gather(lambda counts: counts)
    first, second, third = (key for key in dataset.counted if key.count("/") == 1)
    assert [seen[first], seen[second]] == drawn_before(dataset.sources["image_text"].stream, 12) == [128, 64]
    assert seen[third] == 12 * 8
    for name in (first, second):  # exactly three to one, up to a draw at each end of each of the four lanes
        assert seen[f"{name}/en"] + seen[f"{name}/de"] == seen[name]
        assert abs(seen[f"{name}/de"] - seen[name] / 4) <= 8
    assert seen[f"{third}/en"] == 12 * 8 and seen[f"{third}/xx"] == 12 * 8 * 3  # a sentence, three translations


def test_counts_of_ranks_and_attempts_add_up(weighted: Views) -> None:
    whole = open_dataset(weighted)
    everything = SamplesSeen(whole.counted)
    for step in range(6):
        everything.add(whole[step].samples_seen)
    before: dict[str, int] = {}
    for steps, world_size in ((range(3), 2), (range(3, 6), 3)):
        ranks = [open_dataset(weighted, rank=rank, world_size=world_size) for rank in range(world_size)]
        attempt = SamplesSeen(whole.counted, before)
        for step in steps:
            for rank in ranks:
                attempt.add(rank[step].samples_seen)
        before = attempt.gather(lambda counts: counts)
    assert before == everything.gather(lambda counts: counts)


def test_what_no_manifest_names_is_no_count() -> None:
    seen = SamplesSeen(["image_text/a"])
    seen.add([("image_text/b", 1)])
    with pytest.raises(AssertionError, match="a manifest does not name"):
        seen.gather(lambda counts: counts)
