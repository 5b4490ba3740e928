from __future__ import annotations

from typing import Any

import yaml

from cclm.hub.model_card import model_card, recall_cell, trained_languages
from cclm.hub.parity import Difference, ParityReport
from cclm.report.facts import MEASURED_ON, TRAINED_ON, RunFacts, SetFacts, Stage
from cclm.run.checkpoints import CheckpointFacts
from cclm.types import View
from tests.tiny_config import VIEWS, run_config

PART = Difference(max_abs=3e-7, min_cosine=1.0)
PARITY = ParityReport(
    reference="training engine: DeepSpeed, ZeRO stage 3, 2 ranks, fp32",
    parts={"image_features": PART, "match_logits": PART},
    recall={},
    num_images=8,
    num_texts=16,
    dtype="float32",
    tolerance=1e-4,
)
ROW = {way: {"r1": 25.6, "r5": 52.1, "r10": 63.6} for way in ("t2i", "i2t")}


def set_of(role: str, view: str, languages: list[str], licence: str) -> SetFacts:
    return SetFacts(
        role=role, folder=f"data/{view}", view=View(view), read_by=view, command="",
        samples=5537, rows=37431, size_bytes=1,
        languages=dict.fromkeys(languages, 5), sources={"noto": 5537}, licences={licence: 5537},
    )  # fmt: skip


def facts(**changes: Any) -> RunFacts:
    values: dict[str, Any] = {
        "name": "demo",
        "config": run_config(run_folder="/home/somebody/runs/demo"),
        "results": {},
        "gallery": [],
        "parity": {},
        "sets": [
            set_of(TRAINED_ON, "image_text", ["en", "fr", "uk"], "CC-BY-4.0"),
            set_of(TRAINED_ON, "text_pair", ["en", "zh"], "Unicode-3.0"),
            set_of(MEASURED_ON, "image_text", ["en", "ms"], "MIT"),
        ],
        "stages": [Stage(name="train", command="python -m pretrain --recipe demo", seconds=600.0)],
        "environment": {"python": "3.11", "torch": "2.13"},
        "checkpoint": CheckpointFacts(step=1500, identity="a1"),
    }
    return RunFacts(**{**values, **changes})


def test_front_matter_is_yaml_with_the_languages_that_were_trained() -> None:
    card = model_card(facts(), PARITY, 2_991_219)
    front = yaml.safe_load(card.split("---")[1])
    assert front["language"] == ["en", "zh"], "images were used in English only; the test set taught nothing"
    assert front["library_name"] == "transformers"


def test_norwegian_stays_a_language_in_yaml() -> None:
    sets = [set_of(TRAINED_ON, "text_pair", ["no", "en"], "MIT")]
    front = yaml.safe_load(model_card(facts(sets=sets), PARITY, 1).split("---")[1])
    assert front["language"] == ["en", "no"]


def test_trained_languages_without_a_choice_are_all_of_the_set() -> None:
    assert trained_languages(
        facts(config=run_config(views={"image_text": {**VIEWS["image_text"], "languages": None}}))
    ) == [
        "en",
        "fr",
        "uk",
        "zh",
    ]


def test_an_unmeasured_model_says_so_and_still_names_data_recipe_and_parity() -> None:
    card = model_card(facts(), PARITY, 2_991_219)
    assert "Not measured" in card and "2,991,219 parameters" in card
    assert "for 1,500 steps, seed 42." in card, "the checkpoint's steps, not the recipe's 1,725"
    assert "CC-BY-4.0 (5,537)" in card and "Unicode-3.0 (5,537)" in card and "37,431 pairs" in card
    assert "| match logits | 3.0e-07 | 1.000000 |" in card and "ZeRO stage 3, 2 ranks" in card
    assert "python -m pretrain --recipe demo" in card
    assert "total_steps: 1725" in card and "/home/somebody" not in card


def test_measured_numbers_stand_in_tables_beside_chance_and_prior() -> None:
    results = {
        "chance": {way: {"r1": 0.063, "r5": 0.317, "r10": 0.633} for way in ("t2i", "i2t")},
        "groups": {"parallel_non_latin": ROW},
        "languages": {"zh": ROW},
        "reranked": {
            "top_k": 8,
            "rule": {"match_weight": 0.35, "similarity_weight": 1.0},
            "groups": {"parallel_non_latin": {way: {"r1": 30.0, "r5": 55.0, "r10": 63.6} for way in ("t2i", "i2t")}},
        },
        "dev": {},
        "matching": {
            "prior": {"accuracy": 66.67, "loss": 0.63651},
            "languages": {"en": {"hard": {"accuracy": 77.9, "loss": 0.48}}},
        },
        "set": {"shards": "data/demo/image-test", "num_images": 1579},
    }
    card = model_card(facts(results=results), PARITY, 2_991_219)
    lines = card.splitlines()
    row = "| Parallel text only, non-Latin scripts | 25.6 / 52.1 / 63.6 | 25.6 / 52.1 / 63.6 |"
    assert row in lines
    assert "| – re-ranked, top 8 | 30.0 / 55.0 / 63.6 | 30.0 / 55.0 / 63.6 |" in lines
    assert "| chance | 0.06 / 0.32 / 0.63 | 0.06 / 0.32 / 0.63 |" in lines
    assert "| zh | 25.6 / 52.1 / 63.6 | 25.6 / 52.1 / 63.6 |" in lines
    assert "- en, hard wrong pairs: accuracy 77.9 %, loss 0.480" in lines
    assert "prior: accuracy 66.7 %, loss 0.637" in card and "1,579 images" in card
    table = lines[lines.index(row) - 2 :]
    assert all(line.startswith("|") for line in table[:5]), "no blank line breaks a table"


def test_a_run_without_parallel_text_claims_none() -> None:
    table = {"chance": {way: dict.fromkeys(("r1", "r5", "r10"), 1.0) for way in ("t2i", "i2t")}}
    table |= {"groups": {"parallel_non_latin": ROW, "control": ROW}, "languages": {}}
    card = model_card(facts(config=run_config(views={"text_pair": None}), results=table, stages=[], sets=[]), PARITY, 1)
    words = " ".join(card.split())
    assert "with translations" not in words and "on images with captions alone (no parallel text)" in words
    assert "| Non-Latin scripts (no parallel text in this run) |" in words and "Parallel text" not in words


def test_cells() -> None:
    assert recall_cell({"r1": 1.0, "r5": 2.25, "r10": 3.0}) == "1.0 / 2.2 / 3.0"
