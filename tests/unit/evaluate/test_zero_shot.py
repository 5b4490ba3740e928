from __future__ import annotations

from typing import Any

import pytest
import torch

from cclm.evaluate.rerank import RerankRule
from cclm.evaluate.tables import results_of, text_table
from cclm.evaluate.zero_shot import LanguageQueries, Measurement, RetrievalSet, choose_rerank_rule, measure

NUM = 24
GROUPS = {"english": ["en"], "control": ["uk", "pt"]}


@pytest.fixture
def data(pictures: Any, words: Any) -> RetrievalSet:  # type: ignore[no-untyped-def]
    names = list(range(NUM))
    ids, mask = words(names, [1 + name % 4 for name in names])
    part = torch.arange(0, NUM, 2)
    return RetrievalSet(
        images_CCHW=pictures(names),
        identity_C=torch.arange(NUM) + 1000,
        queries={
            "en": LanguageQueries(ids_TL=ids, mask_TL=mask, image_T=torch.arange(NUM)),
            "uk": LanguageQueries(ids_TL=ids.roll(1, 0), mask_TL=mask.roll(1, 0), image_T=torch.arange(NUM)),
            "pt": LanguageQueries(ids_TL=ids[part], mask_TL=mask[part], image_T=part),
        },
    )


def measured(data: Any, model: Any, **options: Any) -> Measurement:  # type: ignore[no-untyped-def]
    return measure(model, data, **options)


def test_right_names_are_found_and_shifted_names_are_not(naming_model: Any, data: Any) -> None:
    found = measured(data, naming_model(NUM))
    assert found.languages["en"].recall("t2i")["r1"] == 100.0
    assert found.languages["uk"].recall("t2i")["r1"] == 0.0
    assert found.languages["en"].recall("i2t")["r1"] == 100.0
    assert found.languages["en"].best_TK[:, 0].tolist() == list(range(NUM))
    assert found.group_recall(["en", "uk"], "t2i")["r1"] == 50.0


def test_a_language_with_texts_for_some_pictures_only_asks_only_about_those(naming_model: Any, data: Any) -> None:
    found = measured(data, naming_model(NUM), top_k=3).languages["pt"]
    assert len(found.rank_by_direction["t2i"]) == len(found.rank_by_direction["i2t"]) == NUM // 2
    assert found.image_by_direction["i2t"].tolist() == list(range(0, NUM, 2))
    assert len(found.ranks("i2t", RerankRule())) == NUM // 2
    assert found.chance_by_direction["t2i"]["r1"] == pytest.approx(100 / NUM)
    assert found.chance_by_direction["i2t"]["r1"] == pytest.approx(100 / (NUM // 2))


def test_languages_are_reported_as_they_are_done(naming_model: Any, data: Any) -> None:
    seen: list[str] = []
    measured(data, naming_model(NUM), on_language=seen.append)
    assert seen == ["en", "uk", "pt"]


def test_the_rule_is_chosen_where_it_helps(naming_model: Any, data: Any) -> None:
    turn = 0.7 * 2 * torch.pi / NUM  # the neighbour is nearer than the right one
    knowing = measured(data, naming_model(NUM, dual_error=turn), top_k=4)
    rule, values = choose_rerank_rule(knowing, [["en"]])
    assert rule.match_weight > 0
    assert knowing.group_recall(["en"], "t2i", rule)["r1"] == 100.0 > knowing.group_recall(["en"], "t2i")["r1"]
    assert values[0][1] == knowing.group_recall(["en"], "t2i")["r1"] == 0.0
    dumb = measured(data, naming_model(NUM, dual_error=turn, knows=False), top_k=4)
    assert choose_rerank_rule(dumb, [["en"]])[0].match_weight == 0.0


def test_results_have_the_layout_that_the_report_reads(naming_model: Any, data: Any) -> None:
    found = measured(data, naming_model(NUM, dual_error=0.18), top_k=4, matching_languages=["en"])
    results = results_of(found, GROUPS, RerankRule())
    for table in (results, results["reranked"]):
        assert set(table["groups"]) == {"english", "control"}
        assert set(table["languages"]) == {"en", "uk", "pt"}
        for row in [*table["groups"].values(), *table["languages"].values()]:
            assert set(row) == {"t2i", "i2t"}
            assert set(row["t2i"]) == set(row["i2t"]) == {"r1", "r5", "r10"}
    assert results["reranked"]["top_k"] == 4
    assert results["reranked"]["rule"] == {"match_weight": 1.0, "similarity_weight": 1.0}
    assert results["reranked"]["groups"]["english"]["t2i"]["r1"] == 100.0
    assert set(results["chance"]) == {"t2i", "i2t"}
    assert results["matching"]["prior"] == {"accuracy": 66.67, "loss": 0.63651}
    assert results["matching"]["languages"]["en"]["hard"]["accuracy"] == 100.0
    assert results["standard_error"]["groups"]["english"]["t2i"]["r1"] >= 0.0


def test_a_group_is_the_mean_of_its_languages(naming_model: Any, data: Any) -> None:
    results = results_of(measured(data, naming_model(NUM)), GROUPS)
    uk, pt = (results["languages"][language]["t2i"]["r1"] for language in ("uk", "pt"))
    assert results["groups"]["control"]["t2i"]["r1"] == (uk + pt) / 2 == 50.0
    assert "reranked" not in results and "matching" not in results


def test_what_fixed_rules_give_stands_beside_the_chosen_one(naming_model: Any, data: Any) -> None:
    turn = 0.7 * 2 * torch.pi / NUM  # the dual encoder takes the neighbour, the matching head knows
    found = measured(data, naming_model(NUM, dual_error=turn), top_k=4)
    results = results_of(found, GROUPS, RerankRule(match_weight=0.0))
    assert results["reranked"]["groups"] == results["groups"]
    others = results["reranked_not_chosen"]
    assert {name: order["rule"] for name, order in others.items()} == {
        "match_plus_similarity": {"match_weight": 1.0, "similarity_weight": 1.0},
        "match_alone": {"match_weight": 1.0, "similarity_weight": 0.0},
    }
    for order in others.values():
        assert order["groups"]["english"]["t2i"]["r1"] == 100.0 > results["groups"]["english"]["t2i"]["r1"]
        assert order["languages"]["uk"] == results["languages"]["uk"], "wrong for both"
    table = text_table(results)
    assert "\nenglish                     0.0 " in table
    assert "\n  re-ranked (weight 0)      0.0 " in table
    assert "\n  not chosen: match + sim 100.0 " in table
    assert "\n  not chosen: match alone 100.0 " in table
    by_language = table.split("by language, not chosen: match alone:\n")[1]
    assert by_language.split() == ["en", "100.0/100.0", "uk", "0.0/0.0", "pt", "100.0/100.0"]
    assert "by language, re-ranked" not in table, "a rule of weight 0 would only repeat"


def test_a_fixed_rule_that_was_chosen_is_not_told_twice(naming_model: Any, data: Any) -> None:
    results = results_of(measured(data, naming_model(NUM), top_k=4), GROUPS, RerankRule(similarity_weight=0.0))
    assert list(results["reranked_not_chosen"]) == ["match_plus_similarity"]
    assert "re-ranked (match alone)" in text_table(results)


def test_the_table_prints_chance_beside_every_number(naming_model: Any, data: Any) -> None:
    found = measured(data, naming_model(NUM), top_k=4, matching_languages=["en"])
    table = text_table(results_of(found, GROUPS, RerankRule()))
    rows = {line.split()[0]: line for line in table.splitlines() if line and "(" in line}
    assert rows["english"].split()[-6:-4] == ["100.0", "(5.56)"], "i2t R@1, mean chance of 24, 24 and 12 texts"
    assert rows["en"].split()[1:3] == ["100.0", "(4.17)"]
    assert rows["en"].count("(") == 6
    line = next(line for line in table.splitlines() if line.startswith("  re-ranked (weight 1)"))
    assert line.count("(") == 1 + 6
    assert "prior 66.7 %" in table and "prior 0.637" in table
