"""Nothing is lost in silence: refused records are kept with their reasons, counts add up, too many fail the build."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cclm.errors import ConfigError, DataError
from cclm.shardfile.reader import ShardSet
from cclm.types import TextPair
from shards.build import SetPlan, build_sets
from shards.parts import LazyRecord, Part
from tests.unit.shards.tiny_corpora import (
    bytes_below,
    count_and_make,
    image_plan,
    lazy_images,
    one_part,
    rows_of,
    text_plan,
)


def test_records_in_are_records_written_plus_records_refused(tmp_path: Path) -> None:
    manifest = build_sets([image_plan(count=20, bad=(3, 11))], tmp_path, command="the command")["images"]
    lines = [json.loads(line) for line in (tmp_path / "images" / "quarantine.jsonl").read_text("utf-8").splitlines()]
    assert manifest.config["records_in"] == 20 == manifest.totals.samples + len(lines)
    assert manifest.config["refused"] == {"render_failed": 2}
    assert manifest.command == "the command"
    assert {line["key"] for line in lines} == {"key-3", "key-11"}
    assert all(line["message"] == f"n{line['key'][4:]}: expected a drawing, got a blot. Draw again." for line in lines)
    assert all((line["reason"], line["source"]) == ("render_failed", "brush") for line in lines)
    assert manifest.totals.sources == {"brush": 8, "pen": 10}


def test_text_sets_count_their_licences_by_source(tmp_path: Path) -> None:
    manifest = build_sets([text_plan()], tmp_path)["texts"]
    assert (manifest.totals.samples, manifest.totals.rows, manifest.config["records_in"]) == (12, 36, 36)
    assert manifest.totals.licences == {"Unicode-3.0": 12}
    group = ShardSet(tmp_path / "texts").text_group(1, 0)
    assert [pair.lang_b for pair in group] == ["de", "he", "th"]


def test_too_many_refused_records_fail_the_build_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        build_sets([image_plan(count=20, bad=(3, 4, 5), max_bad=0.1)], tmp_path)
    assert caught.value.reason == "too_many_bad"
    message = str(caught.value)
    assert message.startswith(
        "images: expected at most 10.00% of 20 records broken, and one that is kept, got 3 refused "
        "(render_failed 3); the first: n"
    )
    assert f"Read {tmp_path / 'images' / 'quarantine.jsonl'}, mend the corpus" in message
    assert not (tmp_path / "images" / "manifest.json").exists()
    assert len((tmp_path / "images" / "quarantine.jsonl").read_text("utf-8").splitlines()) == 3


def test_two_of_twenty_are_not_more_than_a_tenth(tmp_path: Path) -> None:
    assert build_sets([image_plan(count=20, bad=(3, 4), max_bad=0.1)], tmp_path)["images"].totals.samples == 18


def test_a_set_without_any_record_fails(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        build_sets([image_plan(count=0)], tmp_path)
    assert caught.value.reason == "too_many_bad"
    with pytest.raises(DataError) as caught:
        build_sets([image_plan(count=2, bad=(0, 1), max_bad=1.0)], tmp_path / "all-bad")
    assert caught.value.reason == "too_many_bad"
    assert caught.value.got.startswith("2 refused (render_failed 2); the first: n0")


def test_shards_differ_by_one_sample_at_most_whatever_was_refused(tmp_path: Path) -> None:
    manifest = build_sets([image_plan(count=23, bad=(1, 2, 3, 4, 5))], tmp_path)["images"]
    assert [shard.samples for shard in manifest.shards] == [4, 5, 4, 5]
    few = build_sets([image_plan(count=4, bad=(1, 2))], tmp_path / "few")["images"]
    assert [shard.samples for shard in few.shards] == [1, 1]


def test_the_order_does_not_depend_on_the_corpus_but_on_seed_and_set(tmp_path: Path) -> None:
    def order(folder: Path, **changes: Any) -> Any:
        plan = image_plan(count=30)
        plan = replace(plan, recipe=replace(plan.recipe, **changes.pop("recipe", {})), **changes)
        build_sets([plan], tmp_path / folder)
        shards = ShardSet(tmp_path / folder / plan.name)
        return [
            shards.locate(shard, sample).key
            for shard, samples in enumerate(shards.samples_per_shard)
            for sample in range(samples)
        ]

    plain = order("plain")
    assert plain != [f"key-{number}" for number in range(30)]
    assert order("reversed", parts=one_part(lazy_images(30)[::-1])) == plain
    assert order("seed", recipe={"seed": 1}) != plain != order("other", name="others")


def test_a_key_that_comes_again_is_refused_and_a_group_takes_only_its_own_sentence(tmp_path: Path) -> None:
    plan = image_plan()
    parts = [*one_part(lazy_images(20)), *one_part(lazy_images(3), name="again")]
    manifest = build_sets([replace(plan, parts=parts)], tmp_path)["images"]
    assert (manifest.config["records_in"], manifest.config["refused"]) == (23, {"key_twice": 3})
    lines = (tmp_path / "images" / "quarantine.jsonl").read_text("utf-8")
    assert "key-0: expected each key once in a set, got 'key-0' again." in lines

    texts = text_plan()
    other = TextPair(text_a="else", lang_a="en", text_b="anders", lang_b="de", source="names", group="g0")
    parts = [*texts.parts, *one_part([LazyRecord(key="g0", source="names", make=partial(list, [other]))], name="odd")]
    texts = replace(texts, parts=parts, recipe=replace(texts.recipe, max_bad_fraction=0.1))
    manifest = build_sets([texts], tmp_path)["texts"]
    assert (manifest.totals.rows, manifest.config["refused"]) == (36, {"group_mixed": 1})


def test_pairs_of_one_group_meet_wherever_they_lie(tmp_path: Path) -> None:
    plan = text_plan()
    singles = [
        LazyRecord(key=pair.group, source="names", make=partial(list, [pair]))
        for part in plan.parts
        for lazy in part.read()
        for pair in lazy.make()
    ]
    parts = [*one_part(singles[::2]), *one_part(singles[1::2], name="rest")]
    build_sets([replace(plan, parts=parts)], tmp_path)
    shards = ShardSet(tmp_path / "texts")
    groups = [shards.text_group(s, n) for s, samples in enumerate(shards.samples_per_shard) for n in range(samples)]
    assert sorted(pairs[0].group for pairs in groups) == sorted(f"g{n}" for n in range(12))
    assert all({pair.lang_b for pair in pairs} == {"de", "he", "th"} for pairs in groups)


def test_records_of_the_other_view_are_a_mistake_of_the_recipe(tmp_path: Path) -> None:
    plan = replace(text_plan(), parts=one_part(lazy_images(2)))
    with pytest.raises(ConfigError, match="expected a corpus of view text_pair, got records of the other view"):
        build_sets([plan], tmp_path)


def test_a_corpus_of_other_languages_alone_names_them(tmp_path: Path) -> None:
    plan = replace(text_plan(), parts=one_part([], skipped=[rows_of("names", de=2, he=3)]))
    with pytest.raises(DataError) as caught:
        build_sets([plan], tmp_path)
    assert caught.value.reason == "too_many_bad"
    assert "5 rows in other languages were skipped (he, de, …)" in caught.value.got


def test_the_first_broken_record_stops_a_build_that_allows_none(tmp_path: Path) -> None:
    plan = image_plan(count=60, bad=(0,), max_bad=0)
    made = []
    records = [replace(lazy, make=partial(count_and_make, made, lazy)) for lazy in plan.parts[0].read()]
    parts = [part for n in range(10) for part in one_part(records[6 * n : 6 * n + 6], name=f"{n}")]
    with pytest.raises(DataError) as caught:
        build_sets([replace(plan, parts=parts)], tmp_path)
    assert caught.value.reason == "too_many_bad"
    assert len(made) == 6


def test_a_complete_set_is_left_alone(tmp_path: Path) -> None:
    build_sets([image_plan()], tmp_path)
    before, times = bytes_below(tmp_path), [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))]
    build_sets([image_plan()], tmp_path)
    assert (bytes_below(tmp_path), [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))]) == (before, times)


def test_another_build_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    build_sets([image_plan()], tmp_path)
    with pytest.raises(ConfigError, match=r"expected an empty folder, or the same build to go on with"):
        build_sets([image_plan(count=21)], tmp_path)
    with pytest.raises(DataError):
        build_sets([image_plan(bad=(1, 2), max_bad=0)], tmp_path / "begun")
    with pytest.raises(ConfigError, match=r"Remove the folder, or choose another --out"):
        build_sets([image_plan(count=21)], tmp_path / "begun")


def test_a_finished_shard_whose_file_is_gone_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_sets([image_plan()], tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("shards.build.Manifest.save", stop)
        with pytest.raises(KeyboardInterrupt):
            build_sets([image_plan()], tmp_path / "cut")
    (tmp_path / "cut" / "images" / "images-000000.tar").unlink()
    build_sets([image_plan()], tmp_path / "cut")
    assert bytes_below(tmp_path / "cut") == bytes_below(tmp_path / "whole")


def stop(*_arguments: Any) -> None:
    raise KeyboardInterrupt


def raise_it(error: Exception) -> Any:
    raise error


def images_of(records: Iterator[Any], max_bad: float = 0.5) -> SetPlan:
    part = Part(name="a file", read=partial(iter, records))
    plan = image_plan(max_bad=max_bad)
    return replace(plan, parts=[part])


def test_a_record_that_raises_anything_is_refused_with_its_place_in_the_same_words(tmp_path: Path) -> None:
    odd = [
        RuntimeError(f"cannot read {object()}"),
        RecursionError(),
        KeyError("x"),
        OSError("x /tmp/a/b.jpg"),
        ValueError(),
    ]
    records = [LazyRecord(key=f"k{n}", source="s", make=partial(raise_it, error)) for n, error in enumerate(odd)]
    for out in (tmp_path / "one", tmp_path / "two"):
        manifest = build_sets([images_of([*lazy_images(20), *records])], out)["images"]
        assert manifest.config["refused"] == {"unexpected": len(odd)}
    lines = (tmp_path / "one" / "images" / "quarantine.jsonl").read_text("utf-8")
    assert lines == (tmp_path / "two" / "images" / "quarantine.jsonl").read_text("utf-8")
    assert "k0: expected sound data, got RuntimeError: cannot read <object object>." in lines
    assert "got OSError: x b.jpg." in lines and "k2: expected sound data, got KeyError: 'x'." in lines


def test_a_pair_that_cannot_be_stored_costs_itself_only(tmp_path: Path) -> None:
    plan = text_plan()
    pair = next(iter(plan.parts[0].read())).make()[0]
    odd = [
        replace(pair, source="x\ud83d"),
        replace(pair, group="x\ud83d"),
        replace(pair, lang_b=None),
        replace(pair, text_b=7),
    ]
    records = [LazyRecord(key=f"odd{n}", source="s", make=partial(list, [one])) for n, one in enumerate(odd)]
    plan = replace(
        plan, recipe=replace(plan.recipe, max_bad_fraction=0.5), parts=[*plan.parts, *one_part(records, name="odd")]
    )
    manifest = build_sets([plan], tmp_path)["texts"]
    assert (manifest.totals.rows, sum(manifest.config["refused"].values())) == (36, len(odd))


def test_a_reader_that_raises_ends_its_part_with_one_refusal(tmp_path: Path) -> None:
    def records() -> Iterator[LazyRecord]:
        yield from lazy_images(5)
        raise RuntimeError("a reader's mistake")

    manifest = build_sets([replace(image_plan(), parts=[Part(name="a file", read=records)])], tmp_path)["images"]
    assert (manifest.totals.samples, manifest.config["refused"]) == (5, {"unexpected": 1})
    assert '"key":"a file-end"' in (tmp_path / "images" / "quarantine.jsonl").read_text("utf-8")


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left"), OSError(errno.EFBIG, "x"), OSError(errno.EMFILE, "x"), MemoryError()],
)
def test_what_the_machine_lacks_is_no_fault_of_the_corpus(tmp_path: Path, error: Exception) -> None:
    """A record that were refused for it would be lost for good: the build stops, and goes on another time."""
    bad = LazyRecord(key="k", source="s", make=partial(raise_it, error))
    with pytest.raises(type(error)):
        build_sets([images_of([*lazy_images(5), bad])], tmp_path)
    assert build_sets([images_of(lazy_images(6))], tmp_path)["images"].totals.samples == 6
