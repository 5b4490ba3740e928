from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cclm.cli.__main__ import main
from cclm.errors import ConfigError, DataError
from cclm.hub.open import OpenedModel, open_model
from cclm.retrieve.embed import Embedder, part_path
from cclm.retrieve.embed_source import Shards
from cclm.shardfile.scores import StoredScores, hash_of_caption, hash_of_pair, label_of_pair
from cclm.types import ImageTextRecord, TextPair
from shards.__main__ import main as build_sets
from shards.filters import refusal_of_pair, refusal_of_text
from shards.recipe import FilterSettings
from tests.unit.data.data_sets import write_images, write_pairs
from tests.unit.hub.test_hub_folder import write

LANGUAGES = {"lang_a": "en", "lang_b": "de"}


def scored(tmp_path: Path, shards: Path, *options: str) -> StoredScores:
    arguments = ["score", str(shards), "--model", str(tmp_path / "model"), "--to", str(tmp_path / "scores"), *options]
    assert main(arguments) == 0
    return StoredScores(tmp_path / "scores")


def test_captions_have_the_cosine_of_image_and_text(
    opened: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(opened, tmp_path / "model")
    source = Shards(write_images(tmp_path / "images", 7), with_captions=True)
    stored = scored(tmp_path, tmp_path / "images", "--units-per-file", "3", "--batch-size", "2")
    embedder, label = Embedder(opened=open_model(tmp_path / "model")), ""
    for unit in range(len(source)):
        record = source.record(unit)
        (image,), _ = embedder.images([lambda unit=unit: source.image(unit)])  # type: ignore[misc]
        for label, texts in record.captions.items():
            for text in texts:
                (feature,), _ = embedder.texts([text])
                found = stored.score(hash_of_caption(record.key, label, text))
                assert found == pytest.approx(float(image @ feature), abs=1e-5)
    assert stored.score(hash_of_caption("another", label, "text")) is None
    assert f"{label:8} " in capsys.readouterr().out


def test_sentences_have_their_cosine_and_a_killed_run_goes_on(opened: OpenedModel, tmp_path: Path) -> None:
    write(opened, tmp_path / "model")
    source = Shards(write_pairs(tmp_path / "pairs", 6), with_captions=True)
    stored = scored(tmp_path, tmp_path / "pairs", "--units-per-file", "2")
    whole = {name: (tmp_path / "scores" / name).read_bytes() for name in ("hashes.npy", "scores.npy", "_scores.json")}
    embedder = Embedder(opened=open_model(tmp_path / "model"))
    for pair in source.pairs(3):
        (first, second), _ = embedder.texts([pair.text_a, pair.text_b])
        assert stored.score(hash_of_pair(pair)) == pytest.approx(float(first @ second), abs=1e-5)
    part_path(tmp_path / "scores", 1).unlink()
    (tmp_path / "scores/_scores.json").unlink()
    with pytest.raises(ConfigError) as error:
        StoredScores(tmp_path / "scores")
    assert "finished scores" in str(error.value)
    kept = part_path(tmp_path / "scores", 0).stat().st_mtime_ns
    scored(tmp_path, tmp_path / "pairs", "--units-per-file", "2")
    assert {name: (tmp_path / "scores" / name).read_bytes() for name in whole} == whole
    assert part_path(tmp_path / "scores", 0).stat().st_mtime_ns == kept


def test_another_model_or_set_is_refused(
    opened: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(opened, tmp_path / "model")
    write_pairs(tmp_path / "pairs", 2)
    write_pairs(tmp_path / "others", 3)
    scored(tmp_path, tmp_path / "pairs")
    arguments = ["--model", str(tmp_path / "model"), "--to", str(tmp_path / "scores")]
    assert main(["score", str(tmp_path / "others"), *arguments]) == 2
    assert "got another source" in capsys.readouterr().err
    assert main(["score", str(tmp_path / "pairs"), *arguments, "--dtype", "bf16"]) == 2
    assert "got another source" in capsys.readouterr().err
    other = replace(opened, model=copy.deepcopy(opened.model))  # the fixture is other tests', too
    with torch.no_grad():
        other.model.text_encoder.embeddings.words.weight[5] += 1
    write(other, tmp_path / "other")
    arguments[1] = str(tmp_path / "other")
    assert main(["score", str(tmp_path / "pairs"), *arguments]) == 2
    assert "got another model" in capsys.readouterr().err


def test_builds_refuse_what_is_below_its_languages_percentile(opened: OpenedModel, tmp_path: Path) -> None:
    write(opened, tmp_path / "model")
    source = Shards(write_images(tmp_path / "images", 40), with_captions=True)
    stored = scored(tmp_path, tmp_path / "images")
    labels = list(stored.summary.languages)
    low, spared = labels[0], labels[-1]
    settings = FilterSettings(
        model_scores=str(tmp_path / "scores"), min_score_percentile=25, min_score_percentiles={spared: 0}
    )
    reasons: dict[str, list[bool]] = {label: [] for label in labels}
    for unit in range(len(source)):
        record = source.record(unit)
        for label, texts in record.captions.items():
            for text in texts:
                refusal = refusal_of_text(text, label, settings, record.key)
                reasons[label].append(refusal is not None)
                if refusal is not None:
                    assert refusal.reason == "text_model_score"
                    score = stored.score(hash_of_caption(record.key, label, text))
                    assert score is not None and score < stored.at_percentile(label, 25)
    assert np.mean(reasons[low]) == pytest.approx(0.25, abs=0.03) and not any(reasons[spared])
    unknown = refusal_of_text("never scored", low, settings, "key")
    assert unknown is not None and unknown.got == "none"
    assert refusal_of_text("a sentence of a pair", low, settings) is None


def test_pairs_are_refused_as_pairs(opened: OpenedModel, tmp_path: Path) -> None:
    write(opened, tmp_path / "model")
    source = Shards(write_pairs(tmp_path / "pairs", 30))
    stored = scored(tmp_path, tmp_path / "pairs")
    pairs = [pair for unit in range(len(source)) for pair in source.pairs(unit)]
    label = label_of_pair(pairs[0])
    settings = FilterSettings(model_scores=str(tmp_path / "scores"), min_score_percentiles={label: 50})
    for pair in pairs:
        score = stored.score(hash_of_pair(pair))
        assert score is not None
        is_low = label_of_pair(pair) == label and score < stored.at_percentile(label, 50)
        refusal = refusal_of_pair(pair, settings)
        assert (refusal is not None) == is_low
        assert refusal is None or refusal.reason == "pair_model_score"


@pytest.mark.slow
@pytest.mark.parametrize("view", ["image_text", "text_pair"])
def test_a_build_of_another_name_finds_the_scores(opened: OpenedModel, tmp_path: Path, view: str) -> None:
    """Build, score, build again without what lies below the median."""
    write(opened, tmp_path / "model")
    options: dict[str, object]
    if view == "image_text":
        (tmp_path / "photos").mkdir()
        for number in range(12):
            Image.new("RGB", (20, 20), (20 * number, 90, 200)).save(tmp_path / f"photos/{number}.png")
        lines = [{"image": f"{number}.png", "captions": {"en": [f"a red car {number}"]}} for number in range(12)]
        (tmp_path / "photos/captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
        corpus, options = "image_folder", {"folder": str(tmp_path / "photos"), "licence": "CC0-1.0"}
    else:
        lines = [{"text_a": f"car {number}", "text_b": f"auto {number} blau"} for number in range(12)]
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({**line, **LANGUAGES}) + "\n" for line in lines))
        corpus, options = "pair_file", {"path": str(tmp_path / "pairs.jsonl")}

    def build(name: str, filters: dict[str, object]) -> Path:
        recipe = {"view": view, "corpus": corpus, "options": options, "num_shards": 1, "filters": filters}
        (tmp_path / f"{name}.json").write_text(json.dumps({"sets": {name: recipe}}))
        assert build_sets(["build", str(tmp_path / f"{name}.json"), "--out", str(tmp_path)]) == 0
        return tmp_path / name

    stored = scored(tmp_path, build("all", {}))
    label = "de-en" if view == "text_pair" else "en"
    best = build("best", {"model_scores": str(tmp_path / "scores"), "min_score_percentile": 50})
    low = int((np.load(tmp_path / "scores/scores.npy") < stored.at_percentile(label, 50)).sum())
    config = json.loads((best / "manifest.json").read_text())["config"]
    reason = f"{'text' if view == 'image_text' else 'pair'}_model_score"
    assert 0 < low <= 6 and config["refused"] == {reason: low} and config["records_in"] == 12


def test_what_has_no_score_is_counted_by_reason(
    opened: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(opened, tmp_path / "model")
    write_images(tmp_path / "images", 6)
    record, images = Shards.record, Embedder.images

    def some_broken(self: Shards, unit: int) -> ImageTextRecord:
        if unit == 2:
            raise DataError(reason="json_broken", expected="JSON", got="none", do="")
        found = record(self, unit)
        return replace(found, image=found.image[:40]) if unit == 4 else found

    monkeypatch.setattr(Shards, "record", some_broken)
    stored = scored(tmp_path, tmp_path / "images")
    assert stored.summary.without == {"json_broken": 1, "image_truncated": 1}
    assert "json_broken 1" in capsys.readouterr().out
    assert sum(each["count"] for each in stored.summary.languages.values()) == 4 * 3

    def overflowing(self: Embedder, given: Any) -> Any:
        features, errors = images(self, given)
        return features * float("inf"), errors

    monkeypatch.setattr(Embedder, "images", overflowing)
    arguments = ["score", str(tmp_path / "images"), "--model", str(tmp_path / "model"), "--to", str(tmp_path / "none")]
    assert main(arguments) != 0
    assert "score_not_finite 12" in capsys.readouterr().err
    assert not (tmp_path / "none/_scores.json").exists()


def test_a_pair_is_found_whichever_side_comes_first() -> None:
    one = TextPair(text_a="a", lang_a="en", text_b="b", lang_b="de", source="s", group="g")
    other = TextPair(text_a="b", lang_a="de", text_b="a", lang_b="en", source="t", group="h")
    assert hash_of_pair(one) == hash_of_pair(other)
    assert hash_of_caption("a", "b", "c\0d") != hash_of_caption("a", "b\0c", "d")


def test_filters_that_would_do_nothing_are_refused(
    opened: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(opened, tmp_path / "model")
    scored(tmp_path, write_pairs(tmp_path / "pairs", 4))
    (tmp_path / "lines.jsonl").write_text(json.dumps({"text_a": "a", "text_b": "b", **LANGUAGES}))

    def refused(view: str, **filters: object) -> str:
        options = {"path": str(tmp_path / "lines.jsonl")}
        if view == "image_text":
            options = {"folder": str(tmp_path), "licence": "CC0-1.0"}
            (tmp_path / "captions.jsonl").write_text("")
        corpus = "pair_file" if view == "text_pair" else "image_folder"
        recipe = {"view": view, "corpus": corpus, "options": options, "filters": filters}
        (tmp_path / "recipe.json").write_text(json.dumps({"sets": {"one": recipe}}))
        assert build_sets(["build", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    scores = str(tmp_path / "scores")
    assert "need model_scores" in refused("text_pair", min_score_percentile=5)
    assert "en-de in min_score_percentiles" in refused(
        "text_pair", model_scores=scores, min_score_percentiles={"en-de": 5}
    )
    assert "got of text_pair" in refused("image_text", model_scores=scores, min_score_percentile=5)
    assert "to its end first" in refused("text_pair", model_scores=str(tmp_path), min_score_percentile=5)
