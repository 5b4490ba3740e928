from __future__ import annotations

import pickle
import resource
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cclm.data.batch import Batch, ImageTextBatch, MaskedTokens, TensorRecord, TextPairBatch, Tokens
from cclm.data.config import DataConfig
from cclm.data.loader import StepDataset, make_loader, make_room_for_open_files
from cclm.data.tokens import TextTokenizer
from cclm.errors import ConfigError, DataError
from tests.unit.data.data_sets import write_images

Change = Callable[..., DataConfig]


def same(first: object, second: object) -> bool:
    if isinstance(first, TensorRecord):
        return type(first) is type(second) and all(
            same(getattr(first, item.name), getattr(second, item.name)) for item in fields(first)
        )
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second) and first.dtype == second.dtype
    return first == second


def texts(tokens: Tokens) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(tokens.ids_BL, tokens.mask_BL, strict=True)]


def hidden(masked: MaskedTokens) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Each masked text with its (column, label) pairs: what does not depend on padding."""
    width = masked.tokens.ids_BL.shape[1]
    slots: list[list[tuple[int, int]]] = [[] for _ in masked.tokens.ids_BL]
    for slot, label in zip(masked.slot_T.tolist(), masked.label_T.tolist(), strict=True):
        slots[slot // width].append((slot % width, label))
    return list(zip(texts(masked.tokens), slots, strict=True))


def image_view(batch: ImageTextBatch, first_row: int) -> dict[str, object]:
    return {
        "images": batch.images_BCHW.flatten(1).tolist(),
        "texts": texts(batch.text),
        "identity": batch.identity_B.tolist(),
        "rows": (batch.matching_row_F + first_row).tolist(),
        "noise": batch.noise_second_FG.tolist(),
        "noise_first": batch.noise_first_FG.tolist(),
        "masked": hidden(batch.masked),
        "ledger": batch.ledger_B.tolist(),
    }


def text_view(batch: TextPairBatch, first_row: int) -> dict[str, object]:
    rows = texts(batch.text)
    return {
        "first": [rows[row] for row in batch.first_P],
        "second": [rows[row] for row in batch.second_P],
        "memory": [rows[row] for row in batch.memory_S],
        "query": [rows[row] for row in batch.query_S],
        "identity_P": batch.identity_P.tolist(),
        "identity_S": batch.identity_S.tolist(),
        "rows": (batch.matching_row_F + first_row).tolist(),
        "noise": batch.noise_second_FG.tolist(),
        "noise_first": batch.noise_first_FG.tolist(),
        "masked": hidden(batch.masked),
        "ledger": batch.ledger_S.tolist(),
    }


def joined(parts: list[dict[str, object]]) -> dict[str, object]:
    return {name: [item for part in parts for item in part[name]] for name in parts[0]}  # type: ignore[attr-defined]


def global_batch(config: DataConfig, tokenizer: TextTokenizer, world_size: int, step: int) -> dict[str, object]:
    shares = [StepDataset(config, tokenizer, 5, rank, world_size)[step] for rank in range(world_size)]
    result: dict[str, object] = {}
    images = [share.image_text for share in shares if share.image_text is not None]
    pairs = [share.text_pair for share in shares if share.text_pair is not None]
    assert len(images) == len(pairs) == world_size
    result["images"] = joined([image_view(part, rank * 16 // world_size) for rank, part in enumerate(images)])
    result["pairs"] = joined([text_view(part, rank * 8 // world_size) for rank, part in enumerate(pairs)])
    return result


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_shares_make_the_same_global_batch(
    config: DataConfig, tokenizer: TextTokenizer, world_size: int
) -> None:
    for step in (0, 7):
        assert global_batch(config, tokenizer, world_size, step) == global_batch(config, tokenizer, 1, step)


def test_workers_change_nothing(config: DataConfig, tokenizer: TextTokenizer) -> None:
    dataset = StepDataset(config, tokenizer, 5, 1, 2)
    alone = list(make_loader(dataset, 3, 8))
    helped = list(make_loader(dataset, 3, 8, num_workers=2))
    assert [batch.step for batch in alone] == [3, 4, 5, 6, 7]
    assert all(same(first, second) for first, second in zip(alone, helped, strict=True))


def test_a_step_does_not_depend_on_what_was_read_before(config: DataConfig, tokenizer: TextTokenizer) -> None:
    walked = StepDataset(config, tokenizer, 5)
    for step in range(30):
        batch = walked[step]
    assert same(batch, StepDataset(config, tokenizer, 5)[29])
    assert not same(batch.image_text, StepDataset(config, tokenizer, 6)[29].image_text)


def test_the_parts_fit_together(config: DataConfig, tokenizer: TextTokenizer) -> None:
    batch = StepDataset(config, tokenizer, 5)[2]
    assert batch.image_text is not None and batch.text_pair is not None
    images, pairs = batch.image_text, batch.text_pair
    assert images.images_BCHW.shape == (16, 3, 8, 8) and images.images_BCHW.dtype == torch.float32
    assert images.matching_row_F.tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
    assert images.noise_first_FG.shape == images.noise_second_FG.shape == (8, 4)
    assert not torch.equal(images.noise_first_FG, images.noise_second_FG)
    assert pairs.matching_row_F.tolist() == [0, 2, 4, 6]
    assert pairs.first_P.shape == pairs.identity_P.shape == (24,)
    assert pairs.identity_P.view(8, 3).eq(pairs.identity_S[:, None]).all()
    for part, row in ((images.masked, images.matching_row_F), (pairs.masked, pairs.memory_S[pairs.matching_row_F])):
        clean = images.text if part is images.masked else pairs.text
        plain = [texts(clean)[index] for index in row]
        for (seen, slots), original in zip(hidden(part), plain, strict=True):
            columns = {column for column, _ in slots}
            assert slots and all(original[column] == label for column, label in slots)
            assert all(seen[at] == original[at] for at in range(len(original)) if at not in columns)


def test_equal_texts_stand_once_and_the_shared_sentence_is_one_row(
    config: DataConfig, tokenizer: TextTokenizer
) -> None:
    for step in range(6):
        pairs = StepDataset(config, tokenizer, 5)[step].text_pair
        assert pairs is not None
        rows = [tuple(row) for row in texts(pairs.text)]
        assert len(set(rows)) == len(rows)
        assert pairs.first_P.view(8, 3).eq(pairs.first_P.view(8, 3)[:, :1]).all()
        assert set(pairs.first_P.tolist()) | set(pairs.second_P.tolist()) == set(range(len(rows)))
        first = torch.stack([pairs.first_P.view(8, 3)[:, 0], pairs.second_P.view(8, 3)[:, 0]])
        roles = torch.stack([pairs.memory_S, pairs.query_S])
        assert torch.equal(first.sort(0).values, roles.sort(0).values)


def test_roles_are_swapped_by_a_coin(change: Change, tokenizer: TextTokenizer) -> None:
    for probability, share in ((0.0, 0.0), (1.0, 1.0), (0.5, 0.5)):
        dataset = StepDataset(change("text_pair", swap_probability=probability), tokenizer, 5)
        parts = [dataset[step].text_pair for step in range(25)]
        swapped = [(part.memory_S != part.first_P.view(8, 3)[:, 0]).float().mean().item() for part in parts if part]
        assert np.mean(swapped) == pytest.approx(share, abs=0.12)


def test_length_buckets_change_the_order_and_no_sample(change: Change, tokenizer: TextTokenizer) -> None:
    """One epoch of 57 groups in batches of 8: no group twice, another order, the same for two ranks."""
    plain, sorted_ = (
        change("text_pair", num_lanes=1, window=57),
        change("text_pair", num_lanes=1, window=57, length_buckets=7),
    )
    seen = []
    for config in (plain, sorted_):
        parts = [StepDataset(replace(config, image_text=None), tokenizer, 5)[step].text_pair for step in range(7)]
        seen.append([identity for part in parts if part for identity in part.identity_S.tolist()])
    assert seen[0] != seen[1] and len(set(seen[0])) == len(set(seen[1])) == 56
    halves = [StepDataset(replace(sorted_, image_text=None), tokenizer, 5, rank, 2)[2].text_pair for rank in (0, 1)]
    assert [identity for half in halves if half for identity in half.identity_S.tolist()] == seen[1][16:24]
    dataset = pickle.loads(pickle.dumps(StepDataset(sorted_, tokenizer, 5)))
    assert dataset[2].text_pair.identity_S.tolist() == seen[1][16:24]
    with pytest.raises(ConfigError, match="length_buckets must be 1 to window"):
        StepDataset(change("text_pair", length_buckets=9), tokenizer, 5)


def test_a_view_can_be_left_out(config: DataConfig, tokenizer: TextTokenizer) -> None:
    batch = StepDataset(replace(config, text_pair=None), tokenizer, 5)[0]
    assert batch.text_pair is None and batch.image_text is not None
    whole = StepDataset(config, tokenizer, 5)[0]
    assert same(batch.image_text, whole.image_text)  # one view's numbers do not depend on the other


def test_padding_is_rounded_up(config: DataConfig, tokenizer: TextTokenizer) -> None:
    batch = StepDataset(replace(config, pad_multiple=8), tokenizer, 5)[0]
    assert batch.image_text is not None
    tokens = batch.image_text.text
    assert tokens.ids_BL.shape[1] == 8
    assert tokens.ids_BL[~tokens.mask_BL].eq(tokenizer.pad_id).all()


def bad_config(tmp_path: Path, broken: set[int], change: Change) -> DataConfig:
    folder = write_images(tmp_path / "bad", 40, broken=broken)
    config = change("image_text", shards=(str(folder),), weights=None)
    return replace(config, text_pair=None)


def test_broken_pictures_are_replaced_and_told(tmp_path: Path, change: Change, tokenizer: TextTokenizer) -> None:
    config = bad_config(tmp_path, {3, 17}, change)
    dataset = StepDataset(config, tokenizer, 5)
    batches = [dataset[step] for step in range(5)]  # two epochs
    bad = [sample for batch in batches for sample in batch.bad_samples]
    assert {sample.key for sample in bad} == {"k3", "k17"}
    assert {sample.reason for sample in bad} == {"image_broken"}
    assert all(sample.shard.endswith(".tar") and sample.offset >= 0 for sample in bad)
    assert all(batch.image_text is not None and len(batch.image_text.ledger_B) == 16 for batch in batches)
    halves = [StepDataset(config, tokenizer, 5, rank, 2)[1] for rank in (0, 1)]
    assert sum((half.bad_samples for half in halves), ()) == batches[1].bad_samples
    whole = torch.cat([half.image_text.ledger_B for half in halves if half.image_text])
    assert batches[1].image_text is not None and torch.equal(whole, batches[1].image_text.ledger_B)


def test_a_neighbourhood_of_broken_pictures_ends_the_run(
    tmp_path: Path, change: Change, tokenizer: TextTokenizer
) -> None:
    dataset = StepDataset(bad_config(tmp_path, set(range(40)), change), tokenizer, 5)
    with pytest.raises(DataError, match="expected a usable sample among the neighbours") as caught:
        dataset[0]
    assert caught.value.reason == "neighbourhood_broken"


def test_an_error_leaves_a_worker_as_it_is(tmp_path: Path, change: Change, tokenizer: TextTokenizer) -> None:
    dataset = StepDataset(bad_config(tmp_path, set(range(40)), change), tokenizer, 5)
    told = []
    for num_workers in (0, 1):
        with pytest.raises(DataError) as caught:
            list(make_loader(dataset, 0, 2, num_workers))
        told.append((caught.value.reason, str(caught.value)))
    assert told[0] == told[1] and told[0][0] == "neighbourhood_broken"


def test_a_loader_knows_its_length_and_can_be_walked_twice(config: DataConfig, tokenizer: TextTokenizer) -> None:
    loader = make_loader(StepDataset(config, tokenizer, 5), 4, 6)
    assert len(loader) == 2 and len(make_loader(StepDataset(config, tokenizer, 5), 6, 4)) == 0
    assert [batch.step for batch in loader] == [batch.step for batch in loader] == [4, 5]


def test_captions_of_one_language_only(change: Change, tokenizer: TextTokenizer) -> None:
    german = StepDataset(change("image_text", languages=("de",)), tokenizer, 5)[0].image_text
    assert german is not None
    assert {row[1] for row in texts(german.text)} == set(tokenizer.encode(["ab"], 8)[0][1:2])


def test_a_set_of_the_other_view_is_refused(change: Change, pairs: Path, tokenizer: TextTokenizer) -> None:
    with pytest.raises(ConfigError, match="expected a shard set of view image_text"):
        StepDataset(change("image_text", shards=(str(pairs),), weights=None), tokenizer, 5)


def test_batches_move_as_a_whole(config: DataConfig, tokenizer: TextTokenizer) -> None:
    batch = StepDataset(config, tokenizer, 5)[0]
    moved = batch.to("meta")
    assert isinstance(moved, Batch) and moved.image_text is not None
    assert moved.image_text.masked.tokens.ids_BL.device.type == "meta"


def test_the_limit_of_open_files_is_raised_or_told() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        make_room_for_open_files([20, 20])
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
        make_room_for_open_files([256, 300])
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (812, before[1])
        with pytest.raises(ConfigError, match=rf"got {before[1]}. Raise it before the start \(`ulimit -n"):
            make_room_for_open_files([before[1]])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
