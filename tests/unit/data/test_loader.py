"""Step → this rank's batch: a pure function of the step, for any number of ranks, workers and views."""

from __future__ import annotations

import pickle
import resource
import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from cclm.data.batch import Batch
from cclm.data.loader import in_background, make_loader, make_room_for_open_files
from cclm.data.tokens import TextTokenizer
from cclm.errors import ConfigError, DataError
from cclm.views.images import ImageBatch
from tests.tiny_batches import same
from tests.tiny_views import DATA, Views, change, only, open_dataset, sources
from tests.unit.data.data_sets import write_images


def test_workers_change_nothing(three_views: Views) -> None:
    dataset = open_dataset(three_views, rank=1, world_size=2)
    alone = list(make_loader(dataset, 3, 8))
    helped = list(make_loader(dataset, 3, 8, num_workers=2))
    assert [batch.step for batch in alone] == [3, 4, 5, 6, 7]
    assert all(same(first, second) for first, second in zip(alone, helped, strict=True))


def test_a_step_does_not_depend_on_what_was_read_before(three_views: Views) -> None:
    walked = open_dataset(three_views)
    for step in range(20):
        batch = walked[step]
    assert same(batch, open_dataset(three_views)[19])
    other = open_dataset(three_views, seed=6)[19]
    assert not any(same(view, other.views[name]) for name, view in batch.views.items())


def test_a_view_can_be_left_out(three_views: Views) -> None:
    whole = open_dataset(three_views)[0]
    assert list(whole.views) == ["image_text", "regions", "text_pair"]
    for name in three_views:
        alone = open_dataset(only(three_views, name))[0]
        assert list(alone.views) == [name]
        assert same(alone.views[name], whole.views[name]), "one view's numbers do not depend on the others"


@pytest.mark.slow
def test_where_a_view_or_a_source_stands_in_the_configuration_changes_no_sample(
    three_views: Views, images: Path, more_images: Path
) -> None:
    turned = dict(reversed(three_views.items()))
    turned = change(turned, "image_text", sources=sources(more_images, images, weights=[1.0, 2.0]))
    assert list(turned) != list(three_views)
    first, second = open_dataset(three_views), open_dataset(turned)
    for step in range(3):
        assert same(first[step], second[step])
    assert first.counted == second.counted
    renamed = {"z": next(iter(sources(images, weights=[2.0]).values())), **sources(more_images, weights=[1.0])}
    other = open_dataset(change(three_views, "image_text", sources=renamed))[0]
    assert not same(other.views["image_text"], first[0].views["image_text"]), "the names number the sources"


def test_micro_batches_are_parts_of_the_step(three_views: Views) -> None:
    views = only(three_views, "image_text", "text_pair")
    whole, parts = open_dataset(views)[4], open_dataset(views, replace(DATA, micro_batches=2))[4].parts
    assert len(parts) == 2
    for name, view in whole.views.items():
        assert torch.equal(view.ledger_S, torch.cat([part.views[name].ledger_S for part in parts]))


def test_padding_is_rounded_up(views: Views, tokenizer: TextTokenizer) -> None:
    for multiple, width in ((8, 8), (1, 5)):
        for view in open_dataset(views, replace(DATA, pad_multiple=multiple))[0].views.values():
            for tokens in (*view.texts, view.masked.tokens):
                assert tokens.ids_BL.shape[1] == 8 if multiple == 8 else tokens.ids_BL.shape[1] <= width
                assert tokens.ids_BL[~tokens.mask_BL].eq(tokenizer.pad_id).all()


def broken_images(tmp_path: Path, views: Views, broken: set[int]) -> Views:
    folder = write_images(tmp_path / "bad", 40, broken=broken)
    return only(change(views, "image_text", sources=sources(folder)), "image_text")


def test_broken_images_are_replaced_and_told(tmp_path: Path, views: Views) -> None:
    bad_views = broken_images(tmp_path, views, {3, 17})
    dataset = open_dataset(bad_views)
    batches = [dataset[step] for step in range(5)]  # two epochs
    bad = [sample for batch in batches for sample in batch.bad_samples]
    assert {sample.key for sample in bad} == {"k3", "k17"}
    assert {(sample.view, sample.source, sample.reason) for sample in bad} == {
        ("image_text", str(tmp_path / "bad"), "image_broken")
    }
    assert all(sample.shard.endswith(".tar") and sample.offset >= 0 for sample in bad)
    ledgers = [batch.views["image_text"].ledger_S for batch in batches]
    assert [len(ledger) for ledger in ledgers] == [16] * 5
    halves = [open_dataset(bad_views, rank=rank, world_size=2)[1] for rank in (0, 1)]
    assert sum((half.bad_samples for half in halves), ()) == batches[1].bad_samples
    assert torch.equal(torch.cat([half.views["image_text"].ledger_S for half in halves]), ledgers[1])


def test_a_neighbourhood_of_broken_images_ends_the_run(tmp_path: Path, views: Views) -> None:
    dataset = open_dataset(broken_images(tmp_path, views, set(range(40))))
    with pytest.raises(DataError) as caught:
        dataset[0]
    assert caught.value.reason == "neighbourhood_broken"


def test_an_error_leaves_a_worker_as_it_is(tmp_path: Path, views: Views) -> None:
    dataset = open_dataset(broken_images(tmp_path, views, set(range(40))))
    told = []
    for num_workers in (0, 1):
        with pytest.raises(DataError) as caught:
            list(make_loader(dataset, 0, 2, num_workers))
        told.append((caught.value.reason, str(caught.value)))
    assert told[0] == told[1] and told[0][0] == "neighbourhood_broken"


def test_a_loader_ends_before_its_last_step(views: Views) -> None:
    assert [batch.step for batch in make_loader(open_dataset(views), 4, 6)] == [4, 5]
    assert not list(make_loader(open_dataset(views), 6, 4))


def test_steps_that_are_left_out_have_no_batch_and_move_no_other(three_views: Views) -> None:
    dataset = open_dataset(three_views)
    whole = {batch.step: batch for batch in make_loader(dataset, 1, 7)}
    for num_workers in (0, 2):
        found = list(make_loader(dataset, 1, 7, num_workers, left_out={2, 3, 5}))
        assert [batch.step for batch in found] == [1, 4, 6]
        assert all(same(batch, whole[batch.step]) for batch in found)


def test_a_thread_that_prepares_batches_ends_with_who_reads_them(three_views: Views) -> None:
    """A run that rolls back reads anew: neither the thread nor the loader's workers may stay behind."""
    before = threading.enumerate()
    batches = in_background(make_loader(open_dataset(three_views), 0, 50, num_workers=1), lambda batch: batch)
    assert [next(batches).step for _ in range(3)] == [0, 1, 2]
    (thread,) = [one for one in threading.enumerate() if one.name == "batches" and one not in before]
    assert isinstance(batches, Generator)
    batches.close()
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_a_set_of_the_other_view_is_refused(views: Views, images: Path, pairs: Path) -> None:
    for name, folder, wanted in (("image_text", pairs, "image_text"), ("text_pair", images, "text_pair")):
        with pytest.raises(ConfigError, match=f"expected a shard set of view {wanted}") as caught:
            open_dataset(change(views, name, sources=sources(folder)))
        assert f"views.{name}.sources names it" in str(caught.value)


def test_a_run_longer_than_its_sources_is_refused(views: Views, pairs: Path) -> None:
    dataset = open_dataset(change(views, "text_pair", sources=sources(pairs, max_epochs=2)))
    end = dataset.sources["text_pair"].stream.end_step
    assert end is not None and 57 * 2 - 8 < end * 8 <= 57 * 2
    dataset.check_steps(end)
    assert len(list(make_loader(dataset, end - 1, end))) == 1
    with pytest.raises(ConfigError, match=rf"views\.text_pair\.sources: .* used up after {end}"):
        dataset.check_steps(end + 1)


def test_batches_move_and_travel_as_a_whole(views: Views) -> None:
    batch = open_dataset(views)[0]
    assert same(pickle.loads(pickle.dumps(batch)), batch)
    moved = batch.to("meta")
    assert isinstance(moved, Batch) and isinstance(moved.views["image_text"], ImageBatch)
    assert moved.views["image_text"].masked.tokens.ids_BL.device.type == "meta"
    assert moved.views["image_text"].text.ids_BL.device.type == "meta"


def test_bytes_are_normalised_where_they_are(three_views: Views) -> None:
    batch = open_dataset(three_views)[0]
    normal = batch.normalised()
    regions = cast(ImageBatch, batch.views["regions"])
    assert regions.images_BCHW.dtype == torch.uint8
    expected = regions.pixel_scale(regions.images_BCHW)
    assert torch.equal(cast(ImageBatch, normal.views["regions"]).images_BCHW, expected)
    assert normal.views["image_text"] is batch.views["image_text"], "floats are normalised already"
    assert normal.views["text_pair"] is batch.views["text_pair"] and batch.views["text_pair"].images is None


def test_the_limit_of_open_files_is_raised_or_told() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        make_room_for_open_files(300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
        make_room_for_open_files(812)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (812, before[1])
        with pytest.raises(ConfigError, match=rf"got {before[1]}. Raise it before the start \(`ulimit -n"):
            make_room_for_open_files(before[1] + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
