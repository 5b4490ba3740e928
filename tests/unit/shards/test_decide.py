"""What stands in a set, against slow twins; counts that always add up; the same answer for any size of buckets."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cclm.errors import DataError
from cclm.shardfile.reader import ShardSet
from cclm.types import ImageTextRecord, Region, TextPair, View
from shards.build import SetPlan, build_sets, plan_set
from shards.chunks import order_of
from shards.decide import sampling_rates
from shards.parts import LazyRecord
from shards.recipe import DuplicateSettings, FilterSettings, ImageSettings, SamplingSettings, SetRecipe
from tests.image_files import encoded
from tests.left_to_long import left_to_slow
from tests.unit.shards.tiny_corpora import PNG_END, PNG_START, bytes_below, one_part, unlike_plan
from tests.unit.shards.tiny_pictures import drawing

quick = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def lazy_pair(text_a: str, text_b: str, lang_b: str = "de") -> LazyRecord:
    pair = TextPair(text_a=text_a, lang_a="en", text_b=text_b, lang_b=lang_b, source="s", group=text_a)
    return LazyRecord(key=text_a, source="s", make=partial(list, [pair]))


def text_plan(lazy_records: list[LazyRecord], **settings: object) -> SetPlan:
    recipe = SetRecipe(
        view=View.TEXT_PAIR, corpus="lines", num_shards=3, max_bad_fraction=1.0, **{"records_per_chunk": 4, **settings}
    )
    half = len(lazy_records) // 2
    return plan_set("set", recipe, [*one_part(lazy_records[:half]), *one_part(lazy_records[half:], name="rest")])


def pairs_of(folder: Path) -> Any:
    shards = ShardSet(folder / "set")
    return [
        pair
        for shard, samples in enumerate(shards.samples_per_shard)
        for sample in range(samples)
        for pair in shards.text_group(shard, sample)
    ]


def lines_of(folder: Path, name: str = "set") -> Any:
    return [json.loads(line) for line in (folder / name / "quarantine.jsonl").read_text("utf-8").splitlines()]


word = st.sampled_from(["dog", "Dog", "cat", "bird", "a", "", "fish  soup", "fish soup"])


@quick
@given(st.lists(st.tuples(word, word, st.sampled_from(["de", "fr"])), min_size=1, max_size=40), st.booleans())
def test_exact_duplicates_against_a_slow_twin_and_counts_that_add_up(
    tmp_path_factory: pytest.TempPathFactory, rows: Any, sampled: Any
) -> None:
    out = tmp_path_factory.mktemp("set")
    plan = text_plan(
        [lazy_pair(*row) for row in rows],
        duplicates=DuplicateSettings(exact=True),
        filters=FilterSettings(min_characters=2),
        sampling=SamplingSettings(temperature=3.0 if sampled else 1.0),
    )
    fine = [row for row in rows if len(row[0].strip()) > 1 and len(row[1].strip()) > 1]
    kept: dict[tuple[str, ...], tuple[str, ...]] = {}
    for row in sorted(fine, key=lambda row: order_of(row[0], plan.seed)):  # stable: then by the order of the corpus
        kept.setdefault(tuple(" ".join(text.casefold().split()) for text in row), row)
    try:
        manifest = build_sets([plan], out)["set"]
    except DataError as error:
        assert error.reason == "too_many_bad" and (not kept or sampled)
        assert len(lines_of(out)) == len(rows)
        return
    written = [(pair.text_a, pair.text_b, pair.lang_b) for pair in pairs_of(out)]
    refused = Counter(line["reason"] for line in lines_of(out))
    assert manifest.config["records_in"] == len(rows) == len(written) + sum(refused.values())
    assert manifest.config["refused"] == dict(refused)
    assert refused["duplicate"] == len(fine) - len(kept)
    if not sampled:
        assert sorted(written) == sorted(kept.values())
    else:
        assert refused["sampled_out"] == len(kept) - len(written)
        assert set(written) <= set(kept.values())


@pytest.mark.parametrize("rows", left_to_slow([7, 20], 20))
def test_the_size_of_buckets_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    build_sets([unlike_plan()], tmp_path / "one")
    monkeypatch.setattr("shards.decide.BUCKET_ROWS", rows)
    build_sets([unlike_plan()], tmp_path / "many")
    assert bytes_below(tmp_path / "one") == bytes_below(tmp_path / "many")


def make_hashed(number: int, value: int) -> ImageTextRecord:
    return ImageTextRecord(
        key=f"k{number}", image=PNG_START + value.to_bytes(8, "big") + PNG_END, image_format="png",
        captions={"en": [f"thing {number}"]}, source="pen", licence="CC0-1.0",
    )  # fmt: skip


def hashed_plan(values: list[int], distance: int) -> SetPlan:
    recipe = SetRecipe(
        view=View.IMAGE_TEXT, corpus="drawn", num_shards=2, records_per_chunk=5,
        duplicates=DuplicateSettings(near=True, distance=distance),
    )  # fmt: skip
    lazy_records = [
        LazyRecord(key=f"k{n}", source="pen", make=partial(make_hashed, n, value)) for n, value in enumerate(values)
    ]
    return plan_set("set", recipe, one_part(lazy_records))


@quick
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, 63), max_size=4)), min_size=1, max_size=25),
    st.integers(0, 5),
)
def test_no_two_like_pictures_stay_and_none_goes_without_one(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, bases: Any, changes: Any, distance: Any
) -> None:
    values = []
    for base, flipped in changes:
        value = bases[base % len(bases)]
        for bit in flipped:
            value ^= 1 << bit
        values.append(value)
    monkeypatch.setattr("shards.sketch.perceptual_hash", lambda picture: picture.data[8:16])
    out, plan = tmp_path_factory.mktemp("set"), hashed_plan(values, distance)
    manifest = build_sets([plan], out)["set"]
    refused = {line["key"]: line["message"] for line in lines_of(out)}
    stays = [n for n in range(len(values)) if f"k{n}" not in refused]
    assert manifest.totals.samples == len(stays) and manifest.config["records_in"] == len(values)
    for number in stays:
        assert all((values[number] ^ values[other]).bit_count() > distance for other in stays if other != number)
    for key, message in refused.items():
        other = message.rsplit("'", 2)[1]
        assert (values[int(key[1:])] ^ values[int(other[1:])]).bit_count() <= distance
        assert order_of(other, plan.seed) < order_of(key, plan.seed)


def test_like_sentences_go_with_the_key_of_the_one_that_stays(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    long = "a man in an orange hat is looking at something that nobody else in the picture can see"
    lazy_records = [
        lazy_pair(long, "ein Mann mit orangefarbenem Hut sieht etwas an, das sonst keiner sieht"),
        lazy_pair(f"{long}.", "ein Mann mit orangefarbenem Hut sieht etwas an, das sonst keiner sieht!"),
        lazy_pair(long, "un homme au chapeau orange regarde quelque chose que personne d'autre ne voit", "fr"),
        *(lazy_pair(f"sentence {n} about the number {n * 7919}", f"Satz {n} zur Zahl {n * 7919}") for n in range(9)),
    ]
    manifest = build_sets([text_plan(lazy_records, duplicates=DuplicateSettings(near=True))], tmp_path)["set"]
    (line,) = lines_of(tmp_path)
    assert (line["reason"], line["stage"], manifest.totals.rows) == ("near_duplicate", "duplicates", 11)
    first, second = sorted((long, f"{long}."), key=lambda key: order_of(key, b"0:set"))
    assert line["message"] == f"{second}: expected content unlike that of other records, got nearly that of {first!r}."
    assert (line["text_b"], line["lang_a"], line["lang_b"]) == (
        lazy_records[second != long].make()[0].text_b,
        "en",
        "de",
    )


def captioned(number: int) -> ImageTextRecord:
    captions = {"en": [f"thing {number}", "x"], "de": [f"Ding {number}"] if number % 2 else ["y"]}
    return replace(make_hashed(number, number), captions=captions if number else {"en": ["x"]})


def test_captions_go_alone_and_a_picture_goes_with_its_last_caption(tmp_path: Path) -> None:
    recipe = SetRecipe(view=View.IMAGE_TEXT, corpus="drawn", num_shards=2, filters=FilterSettings(min_characters=2))
    lazy_records = [LazyRecord(key=f"k{n}", source="pen", make=partial(captioned, n)) for n in range(6)]
    manifest = build_sets([plan_set("set", recipe, one_part(lazy_records))], tmp_path)["set"]
    assert (manifest.totals.samples, manifest.config["records_in"]) == (5, 6)
    assert manifest.config["refused"] == {"text_short": 1}
    assert manifest.config["captions_refused"] == {"text_short": 7}
    assert manifest.totals.languages == {"en": 5, "de": 3}
    lines = lines_of(tmp_path)
    assert len(lines) == 8
    assert {line["caption"] for line in lines if "caption" in line} == {"x", "y"}
    assert next(line for line in lines if "caption" not in line)["key"] == "k0"


def test_regions_shrink_with_their_picture(tmp_path: Path) -> None:
    region = Region(box=(30.0, 20.0, 150.0, 101.0), captions={"en": ["part"]})
    record = replace(make_hashed(1, 1), image=encoded(drawing(1, (300, 200))), regions=(region,))
    recipe = SetRecipe(view=View.IMAGE_TEXT, corpus="drawn", images=ImageSettings(short_side=50, format="jpg"))
    lazy = LazyRecord(key="k1", source="pen", make=partial(replace, record))
    build_sets([plan_set("set", recipe, one_part([lazy]))], tmp_path)
    stored = ShardSet(tmp_path / "set").image_text(0, 0)
    assert (stored.image_format, stored.regions[0].box) == ("jpg", (7.5, 5.0, 37.5, 25.25))


def test_sampling_rates() -> None:
    counts = {"de-en": 10_000, "en-sw": 100, "en-fr": 2_500}
    assert sampling_rates(counts, SamplingSettings()) == dict.fromkeys(sorted(counts), 1.0)
    flat = sampling_rates(counts, SamplingSettings(temperature=2.0))
    kept = {label: counts[label] * rate for label, rate in flat.items()}
    assert kept == pytest.approx({"de-en": 1000, "en-sw": 100, "en-fr": 500})
    bounded = sampling_rates(counts, SamplingSettings(temperature=2.0, records=3_000))
    assert sum(counts[label] * rate for label, rate in bounded.items()) == pytest.approx(3_000)
    assert bounded["en-sw"] == 1.0  # cannot give more than it has: the others give its share
    assert (bounded["de-en"] * 10_000) / (bounded["en-fr"] * 2_500) == pytest.approx(2.0)
    assert set(sampling_rates(counts, SamplingSettings(records=10**6)).values()) == {1.0}
    assert sampling_rates({}, SamplingSettings(temperature=2.0)) == {}


def test_sampling_keeps_about_the_rates_and_the_same_records_in_any_order_of_the_corpus(tmp_path: Path) -> None:
    lazy_records = [lazy_pair(f"w{n}", f"x{n}", "de" if n % 10 else "fr") for n in range(1500)]
    wanted = SamplingSettings(temperature=2.0)
    build_sets([text_plan(lazy_records, sampling=wanted, records_per_chunk=400)], tmp_path / "a")
    build_sets([text_plan(lazy_records[::-1], sampling=wanted, records_per_chunk=300)], tmp_path / "b")
    kept = Counter(pair.lang_b for pair in pairs_of(tmp_path / "a"))
    assert kept["fr"] == 150
    assert abs(kept["de"] - 450) < 5 * (450 * 2 / 3) ** 0.5  # binomial, five standard deviations
    assert sorted(map(repr, pairs_of(tmp_path / "a"))) == sorted(map(repr, pairs_of(tmp_path / "b")))
