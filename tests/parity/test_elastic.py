"""Any world size, workers, micro-batches, kill point and restart give the ledger of one undisturbed process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cclm.data.config import DataConfig, ImageTextDataConfig, TextPairDataConfig
from cclm.data.ledger import LedgerFile, step_sum, verify_ledger
from cclm.data.loader import StepDataset, make_loader
from cclm.data.options import ImageTransformConfig, MaskingConfig, MixConfig, MixStage
from cclm.data.tokens import TextTokenizer
from cclm.train.loop import ledger_sums
from tests.unit.data.data_sets import make_tokenizer, write_images, write_pairs

STEPS = 14


@dataclass(frozen=True)
class Life:
    """One start of a run: on how many ranks and workers, in how many micro-batches, how far it came, and what its last
    checkpoint was."""

    shape: tuple[int, int]
    """Ranks, micro-batches."""
    num_workers: int
    killed_after: int
    checkpoint_before: int


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataConfig]:
    folder = tmp_path_factory.mktemp("corpus")
    write_images(folder / "images", 47, per_shard=9, broken={5, 30})
    write_images(folder / "few", 3, first=60, per_shard=2)  # fewer than lanes, in uneven shards
    write_pairs(folder / "pairs", 31, per_shard=7)
    transform = ImageTransformConfig(size=8, method="affine", resample="box")
    yield DataConfig(
        tokenizer="",
        image_text=ImageTextDataConfig(
            shards=(str(folder / "images"), str(folder / "few")),
            weights=(3.0, 1.0),
            mix=MixConfig(max_epochs=(None, 9), schedule=(MixStage(start_step=8, weights=(1.0, 1.0)),)),
            batch_size=16,
            negative_group=2,
            matching_rows=8,
            num_lanes=6,
            window=6,
            max_tokens=8,
            transform=transform,
        ),
        text_pair=TextPairDataConfig(
            shards=(str(folder / "pairs"),),
            batch_size=12,
            negative_group=3,
            matching_rows=4,
            num_lanes=5,
            window=5,
            max_tokens=8,
            masking=MaskingConfig(max_masks=3),
        ),
    )


def rank_sums(config: DataConfig, life: Life, first: int, rank: int) -> list[dict[str, int]]:
    """This rank's sums of the steps from `first` on, read through a loader."""
    world_size, micro_batches = life.shape
    config = replace(config, micro_batches=micro_batches)
    dataset = StepDataset(config, TextTokenizer(make_tokenizer()), 11, rank, world_size)
    batches = list(make_loader(dataset, first, life.killed_after, life.num_workers))
    assert all(len(batch.parts) == micro_batches for batch in batches)
    return [ledger_sums(batch) for batch in batches]


def live(config: DataConfig, life: Life, first: int, path: Path) -> None:
    """Write the ledger from step `first` to where the life is killed."""
    ledger = LedgerFile(path, first)
    ranks = [rank_sums(config, life, first, rank) for rank in range(life.shape[0])]
    for step, shares in enumerate(zip(*ranks, strict=True), start=first):
        ledger.append(step, {view: step_sum([share[view] for share in shares]) for view in shares[0]})


def ledger_of(config: DataConfig, lives: list[Life]) -> str:
    """The ledger's text after some lives, the last of them to the end."""
    with tempfile.TemporaryDirectory() as folder:
        path, first = Path(folder) / "ledger.jsonl", 0
        for life in lives:
            live(config, replace(life, killed_after=max(life.killed_after, first)), first, path)
            first = max(first, min(life.killed_after, life.checkpoint_before))
        verify_ledger(path)
        return path.read_text(encoding="utf-8")


def lives(workers: st.SearchStrategy[int]) -> st.SearchStrategy[list[Life]]:
    shape = st.sampled_from([(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2), (1, 4)])
    life = st.builds(Life, shape, workers, st.integers(0, STEPS), st.integers(0, STEPS))
    last = st.builds(Life, shape, workers, st.just(STEPS), st.just(STEPS))
    return st.tuples(st.lists(life, max_size=3), last).map(lambda pair: [*pair[0], pair[1]])


@pytest.fixture(scope="module")
def unbroken(corpus: DataConfig) -> str:
    return ledger_of(corpus, [Life((1, 1), 0, STEPS, STEPS)])


@settings(max_examples=12, deadline=None)
@given(drawn=lives(st.just(0)))
def test_any_lives_write_the_same_ledger(corpus: DataConfig, unbroken: str, drawn: list[Life]) -> None:
    assert ledger_of(corpus, drawn) == unbroken


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(drawn=lives(st.integers(0, 2)))
def test_any_workers_write_the_same_ledger(corpus: DataConfig, unbroken: str, drawn: list[Life]) -> None:
    assert ledger_of(corpus, drawn) == unbroken


def test_the_ledger_would_show_a_difference(corpus: DataConfig, unbroken: str) -> None:
    assert corpus.text_pair is not None
    other = replace(corpus, text_pair=replace(corpus.text_pair, window=4))
    assert ledger_of(other, [Life((2, 1), 0, STEPS, STEPS)]) != unbroken


def test_every_sample_of_an_epoch_is_read_once(corpus: DataConfig) -> None:
    """31 groups in uneven shards, 12 a step on 3 uneven ranks: nothing is read twice before all is read once."""
    dataset = [StepDataset(corpus, TextTokenizer(make_tokenizer()), 11, rank, 3) for rank in range(3)]
    source = dataset[0].text_pair
    assert source is not None
    slots = [list(own.slots(12, 3)) for own in dataset]
    assert [slot for own in slots for slot in own] == list(range(12)) and sorted(map(len, slots)) == [3, 3, 6]
    seen = [source.stream.address(step, slot) for step in range(3) for slot in range(12)]
    first = [address for address in seen if address.epoch == 0]
    assert len({(address.shard, address.sample) for address in first}) == len(first) == 31
