from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cclm.report.claims import (
    group_title,
    learned_from,
    measured_words,
    negatives_words,
    rerank_words,
    retrieval_title,
    start_words,
    trained_on_test_images,
)
from cclm.report.facts import MEASURED_ON, TRAINED_ON, RunFacts, SetFacts
from cclm.types import View
from tests.tiny_config import VIEWS, run_config


def one_set(read_by: str, hashes: str, languages: str = "en de") -> SetFacts:
    """A set that a view was trained on, or, without one, that the run was measured on."""
    view = View.TEXT_PAIR if read_by == "text_pair" else View.IMAGE_TEXT
    return SetFacts(
        role=TRAINED_ON if read_by else MEASURED_ON, read_by=read_by, folder="", view=view, command="",
        samples=1, rows=1, size_bytes=1, languages=dict.fromkeys(languages.split(), 1), sources={}, licences={},
        tar_hashes=frozenset(hashes.split()),
    )  # fmt: skip


def regions(shards: str) -> dict[str, Any]:
    return {"sources": {"regions": {"path": shards}}, "transform": {"size": 32}, "patch_grid": 4}


def facts(sets: list[SetFacts], measured: str = "sets/test", **views: Any) -> RunFacts:
    members = {"english": ["en"], "parallel_latin": ["de"], "control": ["pt"], "mine_too": ["de"]}
    return RunFacts(
        name="run",
        config=run_config(views=views, model={"box_head": "regions" in views}),
        results={"set": {"shards": measured}, "members": members} if measured else {},
        gallery=[],
        parity={},
        sets=sets,
        stages=[],
        environment={},
    )


TRAIN, TEST = one_set("image_text", "a b"), one_set("", "c d")


def test_another_set_is_zero_shot() -> None:
    found = facts([TRAIN, TEST])
    assert trained_on_test_images(found) is False
    assert retrieval_title(found) == "Zero-shot retrieval"
    assert measured_words(found, 2) == (
        "Measured zero-shot on another set of images than it was trained on, in 2 languages."
    )


@pytest.mark.parametrize(
    "found",
    [
        facts([], measured="sets/../sets/train"),
        facts([TRAIN, one_set("", "x b")]),
        facts([TRAIN, one_set("regions", "r"), one_set("", "r")], regions=regions("sets/r")),
    ],
    ids=["the same folder", "a copied tar", "images of regions"],
)
def test_training_pictures_are_called_so(found: RunFacts) -> None:
    assert trained_on_test_images(found) is True
    assert "Zero-shot" not in retrieval_title(found)
    assert measured_words(found, 1) == "Measured on images that it was trained on, in one language."


@pytest.mark.parametrize(
    "found",
    [
        facts([TRAIN]),
        facts([TEST]),
        facts([TRAIN, one_set("", "")]),
        facts([TRAIN, TEST], regions=regions("sets/somewhere-else")),
        facts([], measured=""),
    ],
    ids=["no test set at hand", "no training set at hand", "no hashes", "one of two at hand", "not measured"],
)
def test_what_is_not_known_is_not_claimed(found: RunFacts) -> None:
    assert trained_on_test_images(found) is None
    assert retrieval_title(found) == "Retrieval"
    assert "not known" in measured_words(found, 3) and "zero-shot" not in measured_words(found, 3)


def test_where_the_weights_came_from() -> None:
    assert start_words(run_config()) == "from scratch"
    sources = ["/models/swin_base.pth", "FacebookAI/xlm-roberta-base"]
    assert start_words(run_config(start={"sources": sources})) == "from the weights of swin_base.pth, xlm-roberta-base"


@pytest.mark.parametrize(
    ("objectives", "words"),
    [
        ({"hardness": 0.0}, "uniform negatives"),
        ({"hardness": 1.0, "hardness_full_step": 0}, "negatives of hardness 1"),
        (
            {"hardness": 0.3, "hardness_start_step": 950, "hardness_full_step": 1900},
            "negatives of hardness 0, from step 950 to 1,900 rising to 0.3",
        ),
    ],
)
def test_how_hard_the_negatives_were(objectives: dict[str, Any], words: str) -> None:
    assert negatives_words(run_config(objectives=objectives)) == words


def test_a_groups_name_is_not_belied_by_the_data() -> None:
    pairs = one_set("text_pair", "p", "en de")
    found = facts([TRAIN, TEST, pairs])
    assert group_title(found, "parallel_latin") == "Parallel text only, Latin script"
    assert group_title(found, "control") == "Neither images nor parallel text (control)"
    assert group_title(found, "english") == "English"
    assert group_title(found, "mine_too") == "mine too"
    seen = facts([TRAIN, pairs], image_text={**VIEWS["image_text"], "languages": None})
    assert group_title(seen, "parallel_latin") == "parallel latin", "images had German captions, too"
    taught = facts([one_set("text_pair", "p", "en pt")])
    assert group_title(taught, "control") == "control"
    alone = facts([TRAIN], text_pair=None)
    assert "no parallel text in this run" in group_title(alone, "control")
    assert learned_from(alone) == ", on images with captions alone (no parallel text)"


def test_how_the_order_came_about() -> None:
    assert rerank_words({}) == ""
    order = {"top_k": 8, "rule": {"match_weight": 1.0, "similarity_weight": 1.0}}
    assert "no weights chosen" in rerank_words({"reranked": order})
    chosen = rerank_words({"reranked": order, "dev": {}})
    assert chosen.startswith("Re-ranked: the fusion encoder") and chosen.endswith("weights chosen on the dev set.")
    assert "fixed rules" in rerank_words({"reranked": order, "reranked_not_chosen": {"x": order}})


def test_relative_folders_are_compared_by_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert trained_on_test_images(facts([], measured=str(tmp_path / "sets" / "train"))) is True
