"""Tables of a benchmark: seeds, averages, baselines, published rows, and every format."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cclm.errors import ConfigError
from cclm.evaluate.benchmark_table import BenchmarkTable, Choice, build_table, tables_in
from cclm.evaluate.published import AVERAGE, published_rows
from cclm.evaluate.results import Result, ResultStore, measured, results_in, write_predictions
from cclm.evaluate.table_text import KINDS, render
from tests.unit.evaluate.test_results import RESULT

XVNLI = Choice(task="xvnli", metric="accuracy")


def stored(folder: Path, right_by_model: dict[str, list[int]], **changes: Any) -> list[tuple[Path, Result]]:
    """Store a hundred rows in en, ar and fr, of which so many are right in each seed."""
    store = ResultStore(folder / "results.jsonl")
    for model, rights in right_by_model.items():
        for seed, right in enumerate(rights):
            for language in ("en", "ar", "fr"):
                lines = [{"id": n, "predicted": int(n < right), "label": 1, "reranked": 0} for n in range(100)]
                name = f"{model}-{seed}-{language}.jsonl"
                digest = write_predictions(folder / name, lines)
                common = replace(RESULT, model=model, seed=seed, language=language, predictions=name, **changes)
                store.append(measured(replace(common, predictions_sha256=digest), ["accuracy"], lines))
    return results_in([folder])


def row_of(table: BenchmarkTable, model: str) -> Any:
    return next(row for row in table.rows if row.model == model)


def test_means_over_seeds_and_languages(tmp_path: Path) -> None:
    table = build_table(stored(tmp_path, {"mine": [60, 62, 67]}), XVNLI, with_published=False)
    (row,) = table.rows
    assert table.columns == ["en", "ar", "fr", AVERAGE]
    assert (row.cells["ar"].mean, row.cells["ar"].num_seeds) == (pytest.approx(63.0), 3)
    assert row.cells[AVERAGE].deviation == pytest.approx(3.6056, abs=1e-4)


def test_the_average_leaves_english_out_and_takes_seeds_that_have_all_languages(tmp_path: Path) -> None:
    found = [
        (folder, one) for folder, one in stored(tmp_path, {"mine": [60, 70]}) if (one.seed, one.language) != (1, "fr")
    ]
    english = [(folder, replace(one, value=99.0) if one.language == "en" else one) for folder, one in found]
    cells = build_table(english, XVNLI, with_published=False).rows[0].cells
    assert (cells[AVERAGE].mean, cells[AVERAGE].num_seeds) == (60.0, 1) and cells["en"].mean == 99.0


@pytest.mark.slow
def test_a_baseline_is_compared_row_by_row(tmp_path: Path) -> None:
    found = stored(tmp_path, {"mine": [70], "close": [51], "base": [50]})
    table = build_table(found, XVNLI, baseline="base", with_published=False)
    assert not row_of(table, "base").comparisons
    assert row_of(table, "mine").comparisons["ar"].is_significant
    assert row_of(table, "mine").comparisons[AVERAGE].difference == pytest.approx(20.0)
    assert not row_of(table, "close").comparisons["ar"].is_significant
    text = render(table, "terminal")
    assert "70.00 *" in text and "51.00 *" not in text and "McNemar" in text


def test_a_re_ranked_row_is_compared_to_a_re_ranked_baseline(tmp_path: Path) -> None:
    found = stored(tmp_path / "plain", {"base": [60], "mine": [70]})
    shown = {"base": [50], "mine": [55]}
    found += [(folder, replace(one, reranked=8)) for folder, one in stored(tmp_path / "again", shown)]
    table = build_table(found, XVNLI, baseline="base:zero-shot", with_published=False)
    differences = {(row.model, row.reranked): row.comparisons["ar"].difference for row in table.rows if row.comparisons}
    assert differences == {
        ("mine", 0): pytest.approx(10.0), ("mine", 8): pytest.approx(5.0), ("base", 8): pytest.approx(-10.0),
    }  # fmt: skip


def test_a_protocol_may_be_the_baseline_of_all(tmp_path: Path) -> None:
    """What fine-tuning costs: the same model before."""
    found = stored(tmp_path / "before", {"mine": [80]}, protocol="no-fine-tuning")
    found += stored(tmp_path / "after", {"mine": [50]})
    table = build_table(found, XVNLI, baseline="mine:no-fine-tuning", with_published=False)
    after, before = table.rows
    assert after.comparisons["fr"].difference == pytest.approx(-30.0) and not before.comparisons
    with pytest.raises(ConfigError):
        build_table(found, XVNLI, baseline="mine:few-shot", with_published=False)


def test_what_is_not_alike_stands_in_another_row(tmp_path: Path) -> None:
    found = stored(tmp_path / "a", {"mine": [60]})
    for number, change in enumerate(
        ({"protocol": "few-shot", "shots": "48"}, {"selected_on": "test"}, {"reranked": 128})
    ):
        found += stored(tmp_path / str(number), {"mine": [61]}, **change)
    table = build_table(found, XVNLI, with_published=False)
    assert len(table.rows) == 4
    titles = [row.title for row in table.rows]
    assert titles[-1] == "mine (few-shot 48)" and "mine (zero-shot) ‡" in titles
    assert "mine (zero-shot, re-ranked 128)" in titles


@pytest.mark.parametrize("seed", [1, 2])
def test_runs_and_test_files_are_never_mixed_in_a_row(seed: int, tmp_path: Path) -> None:
    """The same model, protocol and seed from other weights; the same row of other data, also in another seed."""
    first = (tmp_path / "a", replace(RESULT, checkpoint="one", data_file="few.json", data_sha256="11"))
    again = (tmp_path / "copy", replace(first[1], written="later"))
    seeds = (tmp_path / "c", replace(first[1], checkpoint="two", seed=2))
    assert build_table([first, again, seeds], XVNLI, with_published=False).rows[0].cells["ar"].num_seeds == 2
    with pytest.raises(ConfigError) as found:
        build_table([first, (tmp_path / "b", replace(first[1], checkpoint="two"))], XVNLI)
    assert str(tmp_path / "a") in found.value.got and str(tmp_path / "b") in found.value.got
    assert "finetune.name" in found.value.do and "fewer folders" in found.value.do
    other = (tmp_path / "b", replace(first[1], seed=seed, data_file="all.json", data_sha256="22"))
    with pytest.raises(ConfigError) as found:
        build_table([first, other], XVNLI)
    assert "few.json" in found.value.got and "all.json" in found.value.got
    with pytest.raises(ConfigError, match="in a run of its own"):
        build_table([first, (tmp_path / "a", other[1])], XVNLI)
    named = (tmp_path / "b", replace(other[1], model="other"))
    assert len(build_table([first, named], XVNLI, with_published=False).rows) == 2


def test_an_average_over_some_languages_says_so(tmp_path: Path) -> None:
    """Ours is over ar and fr, the published ones over ar, es, fr and ru."""
    found = stored(tmp_path, {"mine": [60]})
    table = build_table(found, XVNLI, with_published=False)
    assert table.rows[0].missing == ["es", "ru"]
    assert "60.00 §" in render(table, "terminal") and "leaves out es, ru" in render(table, "markdown")
    more = [(folder, replace(one, language=name)) for folder, one in found[:1] for name in ("es", "ru")]
    assert not build_table(found + more, XVNLI, with_published=False).rows[0].missing


def test_questions_without_a_known_answer_are_told_below_a_table(tmp_path: Path) -> None:
    choice = Choice(task="xgqa", metric="exact_match")
    lines = [{"id": n, "predicted": "red", "answers": [["mauve", 1.0]], "is_unknown": True} for n in range(2)]
    lines.append({"id": 2, "predicted": "red", "answers": [["red", 1.0]]})
    (result,) = measured(replace(RESULT, task="xgqa", language="ar"), ["exact_match"], lines)
    assert (result.num_unknown, result.num_rows) == (2, 3)
    ResultStore(tmp_path / "results.jsonl").append([result])
    table = build_table(results_in([tmp_path]), choice, with_published=False)
    assert "chosen from: ar 2" in render(table, "terminal")
    known = [(tmp_path, replace(result, num_unknown=0))]
    assert "chosen from" not in render(build_table(known, choice, with_published=False), "terminal")


def test_an_average_is_over_the_languages_that_the_task_is_published_in(tmp_path: Path) -> None:
    found = stored(tmp_path, {"mine": [60], "base": [50]})
    found += [(folder, replace(one, language="ja", value=0.0)) for folder, one in found if one.language == "fr"]
    row = row_of(build_table(found, XVNLI, baseline="base", with_published=False), "mine")
    assert (row.cells["ja"].mean, row.cells[AVERAGE].mean) == (0.0, 60.0)
    own = [(folder, replace(one, task="own")) for folder, one in found]
    row = row_of(build_table(own, replace(XVNLI, task="own"), with_published=False), "mine")
    assert row.cells[AVERAGE].mean == 40.0, "of a task of one's own every language counts"


def test_rows_that_count_as_wrong_are_no_difference(tmp_path: Path) -> None:
    """Of the other denominator nothing is compared: both models have the same rows wrong."""
    found = stored(tmp_path, {"mine": [70], "base": [50]})
    found += [(folder, replace(one, denominator="all", num_rows=110, value=one.value / 1.1)) for folder, one in found]
    table = build_table(found, XVNLI, baseline="base", with_published=False)
    compared = {(row.model, row.denominator): bool(row.comparisons) for row in table.rows}
    assert compared == {
        ("base", "usable"): False, ("base", "all"): False, ("mine", "usable"): True, ("mine", "all"): False,
    }  # fmt: skip


def test_published_rows_stand_beside_with_their_source(tmp_path: Path) -> None:
    found = stored(tmp_path, {"mine": [60]})
    table = build_table(found, XVNLI)
    uc2 = next(row for row in table.rows if row.model == "UC2" and row.protocol == "zero-shot")
    assert uc2.cells[AVERAGE].mean == 62.05 and uc2.cells["fr"].mean == 69.7 and uc2.denominator == "all"
    assert "IGLUE" in uc2.source and all(row.is_verified for row in table.rows)
    asked = build_table(found, XVNLI, include_unverified=True)
    unverified = [row for row in asked.rows if not row.is_verified]
    assert unverified and all(row.title.endswith("†") for row in unverified)
    dev = [(folder, replace(one, split="dev")) for folder, one in found]
    assert len(build_table(dev, replace(XVNLI, split="dev")).rows) == 1


def test_every_published_row_has_a_source_and_iglues_averages_are_those_of_its_languages() -> None:
    for task, metric in (("xvnli", "accuracy"), ("xgqa", "exact_match"), ("marvl", "accuracy"), ("wit", "i2t_r1")):
        rows = published_rows(task, metric, include_unverified=True)
        assert rows and all(row.source for row in rows)
        for row in rows:
            others = [cell.mean for language, cell in row.cells.items() if language not in ("en", AVERAGE)]
            if others:
                assert sum(others) / len(others) == pytest.approx(row.cells[AVERAGE].mean, abs=0.06)
    assert len(published_rows("multi30k", "mean_recall")) == 6


def test_formats_hold_the_same_numbers(tmp_path: Path) -> None:
    found = stored(tmp_path, {"mine_&_co": [60, 63]}, task="own")
    table = build_table(found, Choice(task="own", metric="accuracy"), with_published=False)
    texts = {kind: render(table, kind) for kind in KINDS}
    for kind in ("terminal", "markdown", "latex", "html"):
        assert "61.50" in texts[kind] and "2.12" in texts[kind]
    (line,) = csv.DictReader(io.StringIO(texts["csv"]))
    assert float(line["ar"]) == 61.5 and line["avg_seeds"] == "2" and line["model"] == "mine_&_co"
    assert json.loads(texts["json"])["rows"][0]["cells"]["ar"]["mean"] == 61.5
    assert r"mine\_\&\_co" in texts["latex"] and "mine_&amp;_co" in texts["html"]


def test_tables_are_listed_and_what_is_not_there_is_named(tmp_path: Path) -> None:
    found = stored(tmp_path, {"mine": [60]})
    assert tables_in(found) == [XVNLI]
    with pytest.raises(ConfigError, match="xvnli accuracy test"):
        build_table(found, Choice(task="marvl", metric="accuracy"))
    with pytest.raises(ConfigError, match="mine"):
        build_table(found, XVNLI, baseline="other")
