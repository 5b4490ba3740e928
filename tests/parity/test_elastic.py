"""Any world size, workers, micro-batches, kill point and restart give the ledger of one undisturbed process."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cclm.data.ledger import LedgerFile, step_sum, verify_ledger
from cclm.data.loader import make_loader
from cclm.data.options import MixConfig, MixStage, SourceConfig
from cclm.train.recorder import ledger_sums
from tests.tiny_views import DATA, IMAGE_TEXT, REGIONS, TEXT_PAIR, Views, change, open_dataset, sources
from tests.unit.data.data_sets import write_images, write_pairs, write_region_images

STEPS = 14


@dataclass(frozen=True)
class Attempt:
    """One start of a run: on how many ranks and workers, in how many micro-batches, how far it came, and what its last
    checkpoint was."""

    shape: tuple[int, int]
    """Ranks, micro-batches."""
    num_workers: int
    killed_after: int
    checkpoint_before: int


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Views:
    folder = tmp_path_factory.mktemp("corpus")
    write_images(folder / "images", 47, per_shard=9, broken={5, 30})
    write_images(folder / "few", 3, first=60, per_shard=2)  # fewer than lanes, in uneven shards
    write_region_images(folder / "boxes", 23, per_shard=7, without=3)
    write_pairs(folder / "pairs", 31, per_shard=7)
    few = SourceConfig(path=str(folder / "few"), weight=1.0, max_epochs=9)
    later = MixStage(start_step=8, weights={"images": 1.0, "few": 1.0})
    return {
        "image_text": replace(
            IMAGE_TEXT,
            sources=sources(folder / "images", weights=[3.0]) | {"few": few},
            mix=MixConfig(schedule=(later,)),
            negative_group=2,
            num_lanes=6,
            first_caption_probability=None,
            transform=replace(IMAGE_TEXT.transform, cache_bytes=0),
        ),
        "regions": replace(
            REGIONS,
            sources=sources(folder / "boxes"),
            batch_size=16,
            negative_group=4,
            images_per_group=2,
        ),
        "text_pair": replace(
            TEXT_PAIR,
            sources=sources(folder / "pairs"),
            batch_size=12,
            negative_group=3,
            num_lanes=5,
            pairs_per_sample=1,
        ),
    }


def rank_sums(views: Views, attempt: Attempt, first: int, rank: int) -> list[dict[str, int]]:
    """This rank's sums of the steps from `first` on, read through a loader."""
    world_size, micro_batches = attempt.shape
    data = replace(DATA, micro_batches=micro_batches, schedule="alternate")
    dataset = open_dataset(views, data, seed=11, rank=rank, world_size=world_size)
    batches = list(make_loader(dataset, first, attempt.killed_after, attempt.num_workers))
    assert all(len(batch.parts) == micro_batches for batch in batches)
    return [ledger_sums(batch) for batch in batches]


def write_attempt(views: Views, attempt: Attempt, first: int, path: Path) -> None:
    """Write the ledger from step `first` to where the attempt is killed."""
    ledger = LedgerFile(path, first)
    ranks = [rank_sums(views, attempt, first, rank) for rank in range(attempt.shape[0])]
    for step, shares in enumerate(zip(*ranks, strict=True), start=first):
        ledger.append(step, {view: step_sum([share[view] for share in shares]) for view in shares[0]})


def ledger_of(views: Views, attempts: list[Attempt]) -> str:
    """The ledger's text after some attempts, the last of them to the end."""
    with tempfile.TemporaryDirectory() as folder:
        path, first = Path(folder) / "ledger.jsonl", 0
        for attempt in attempts:
            write_attempt(views, replace(attempt, killed_after=max(attempt.killed_after, first)), first, path)
            first = max(first, min(attempt.killed_after, attempt.checkpoint_before))
        verify_ledger(path)
        return path.read_text(encoding="utf-8")


def attempts(workers: st.SearchStrategy[int]) -> st.SearchStrategy[list[Attempt]]:
    shape = st.sampled_from([(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2), (1, 4), (5, 1), (8, 1), (3, 2)])
    any_one = st.builds(Attempt, shape, workers, st.integers(0, STEPS), st.integers(0, STEPS))
    last = st.builds(Attempt, shape, workers, st.just(STEPS), st.just(STEPS))
    return st.tuples(st.lists(any_one, max_size=3), last).map(lambda pair: [*pair[0], pair[1]])


@pytest.fixture(scope="module")
def unbroken(corpus: Views) -> str:
    return ledger_of(corpus, [Attempt((1, 1), 0, STEPS, STEPS)])


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(drawn=attempts(st.just(0)))
def test_any_attempts_write_the_same_ledger(corpus: Views, unbroken: str, drawn: list[Attempt]) -> None:
    assert ledger_of(corpus, drawn) == unbroken


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(drawn=attempts(st.integers(0, 2)))
def test_any_workers_write_the_same_ledger(corpus: Views, unbroken: str, drawn: list[Attempt]) -> None:
    assert ledger_of(corpus, drawn) == unbroken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("view", "changes"),
    [("text_pair", {"window": 4}), ("image_text", {"num_lanes": 5}), ("regions", {"texts_per_image": 2})],
)
def test_the_ledger_would_show_a_difference(corpus: Views, unbroken: str, view: str, changes: dict[str, int]) -> None:
    assert ledger_of(change(corpus, view, **changes), [Attempt((2, 1), 0, STEPS, STEPS)]) != unbroken


def test_every_sample_of_an_epoch_is_read_once(corpus: Views) -> None:
    """31 groups in uneven shards, 12 a step on 5 uneven ranks: nothing is read twice before all is read once."""
    datasets = [open_dataset(corpus, seed=11, rank=rank, world_size=5) for rank in range(5)]
    source = datasets[0].sources["text_pair"]
    indices = [list(own.rows("text_pair")) for own in datasets]
    assert [index for own in indices for index in own] == list(range(12)) and sorted(map(len, indices)) == [
        2,
        2,
        2,
        3,
        3,
    ]
    seen = [source.stream.address(step, index) for step in range(3) for index in range(12)]
    first = [address for address in seen if address.epoch == 0]
    assert len({(address.shard, address.sample) for address in first}) == len(first) == 31
