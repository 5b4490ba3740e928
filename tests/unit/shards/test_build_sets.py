"""Nothing is lost in silence: refused records are kept with their reasons, counts add up, too many fail the build."""

from __future__ import annotations

import json

import pytest

from cclm.errors import ConfigError, DataError
from cclm.shardfile.reader import ShardSet
from shards.build import build_sets
from tests.unit.shards.tiny_corpora import bytes_below, image_plan, text_plan


def test_records_in_are_records_written_plus_records_refused(tmp_path):
    manifest = build_sets([image_plan(count=20, bad=(3, 11))], tmp_path, command="the command")["images"]
    lines = [json.loads(line) for line in (tmp_path / "images" / "quarantine.jsonl").read_text("utf-8").splitlines()]
    assert manifest.config["records_in"] == 20 == manifest.totals.samples + len(lines)
    assert manifest.config["refused"] == {"render_failed": 2}
    assert manifest.command == "the command"
    assert {line["key"] for line in lines} == {"key-3", "key-11"}
    assert all(line["message"] == f"n{line['key'][4:]}: expected a drawing, got a blot. Draw again." for line in lines)
    assert all((line["reason"], line["source"]) == ("render_failed", "brush") for line in lines)
    assert manifest.totals.sources == {"brush": 8, "pen": 10}


def test_text_sets_count_their_licences_by_source(tmp_path):
    manifest = build_sets([text_plan()], tmp_path)["texts"]
    assert (manifest.totals.samples, manifest.totals.rows) == (12, 36)
    assert manifest.totals.licences == {"Unicode-3.0": 12}
    group = ShardSet(tmp_path / "texts").text_group(1, 0)
    assert [pair.lang_b for pair in group] == ["de", "he", "th"]


def test_too_many_refused_records_fail_the_build_with_a_sentence(tmp_path):
    with pytest.raises(DataError) as caught:
        build_sets([image_plan(count=20, bad=(3, 4, 5), max_bad=0.1)], tmp_path)
    assert caught.value.reason == "too_many_bad"
    message = str(caught.value)
    assert message.startswith(
        "images: expected at most 10.00% of 20 records refused, got 3 (render_failed 3); the first: n"
    )
    assert f"Read {tmp_path / 'images' / 'quarantine.jsonl'}, mend the corpus" in message
    assert not (tmp_path / "images" / "manifest.json").exists()
    assert len((tmp_path / "images" / "quarantine.jsonl").read_text("utf-8").splitlines()) == 3


def test_two_of_twenty_are_not_more_than_a_tenth(tmp_path):
    assert build_sets([image_plan(count=20, bad=(3, 4), max_bad=0.1)], tmp_path)["images"].totals.samples == 18


def test_a_set_without_any_record_fails(tmp_path):
    with pytest.raises(DataError, match="got no records at all"):
        build_sets([image_plan(count=0)], tmp_path)
    with pytest.raises(DataError, match=r"got 2 \(render_failed 2\)"):
        build_sets([image_plan(count=2, bad=(0, 1), max_bad=1.0)], tmp_path / "all-bad")


def test_a_shard_of_refused_records_only_leaves_no_file(tmp_path):
    plan = image_plan(count=8)
    bad = tuple(int(draft.key[4:]) for draft in plan.shards[1])
    manifest = build_sets([image_plan(count=8, bad=bad)], tmp_path)["images"]
    assert [shard.name[-5] for shard in manifest.shards] == ["0", "2", "3"]


def test_a_complete_set_is_left_alone(tmp_path):
    build_sets([image_plan()], tmp_path)
    before, times = bytes_below(tmp_path), [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))]
    seen: list[tuple[str, int, bool]] = []
    build_sets([image_plan()], tmp_path, on_shard=lambda *args: seen.append(args))
    assert seen == [("images", 20, True)]
    assert (bytes_below(tmp_path), [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))]) == (before, times)


def test_another_build_in_the_same_folder_is_refused(tmp_path):
    build_sets([image_plan()], tmp_path)
    with pytest.raises(ConfigError, match=r"expected an empty folder, or the same build to go on with"):
        build_sets([image_plan(count=21)], tmp_path)
    with pytest.raises(DataError):
        build_sets([image_plan(bad=(1, 2), max_bad=0)], tmp_path / "begun")
    with pytest.raises(ConfigError, match=r"Remove the folder, or choose another --out"):
        build_sets([image_plan(count=21)], tmp_path / "begun")


def test_a_finished_shard_whose_file_is_gone_is_built_again(tmp_path):
    plan = image_plan(bad=(1, 2, 3), max_bad=0.1)
    with pytest.raises(DataError):
        build_sets([plan], tmp_path)
    tar = tmp_path / "images" / "images-000000.tar"
    whole = tar.read_bytes()
    tar.unlink()
    with pytest.raises(DataError, match="at most"):
        build_sets([plan], tmp_path)
    assert tar.read_bytes() == whole
