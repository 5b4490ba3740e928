"""The store of results, and numbers derived again from kept predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cclm.errors import ConfigError
from cclm.evaluate.results import (
    Result,
    ResultStore,
    derive,
    file_name_of,
    measured,
    results_in,
    write_predictions,
)
from cclm.evaluate.scores import RECALLS

RESULT = Result(
    model="mine",
    task="xvnli",
    protocol="zero-shot",
    language="ar",
    split="test",
    metric="accuracy",
    value=50.0,
    num_rows=4,
    seed=1,
    versions={"torch": "2.13"},
)
LINES: list[dict[str, Any]] = [
    {"id": "a", "predicted": 0, "label": 0},
    {"id": "b", "predicted": 1, "label": 1},
    {"id": "c", "predicted": 2, "label": 1},
]


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results.jsonl")
    store.append([RESULT, replace(RESULT, language="fr", seed=None, shots="48")])
    first, second = store.read()
    assert replace(first, written="") == RESULT and first.written
    assert (second.language, second.seed, second.shots) == ("fr", None, "48")


def test_a_later_result_takes_the_place_of_an_equal_one(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results.jsonl")
    store.append([RESULT, replace(RESULT, seed=2), replace(RESULT, value=60.0)])
    assert [(one.seed, one.value) for one in store.read()] == [(1, 60.0), (2, 50.0)]


def test_a_line_that_a_kill_cut_short_is_left_out_and_another_one_is_told(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results.jsonl")
    store.append([RESULT])
    with store.path.open("a") as file:
        file.write('{"model": "mi')
    assert len(store.read()) == 1
    with store.path.open("a") as file:
        file.write("\n{}\n")
    with pytest.raises(ConfigError) as found:
        store.read()
    assert found.value.where == f"{store.path}:2"


@pytest.mark.parametrize("change", [{"protocol": "one-shot"}, {"selected_on": "train"}])
def test_a_protocol_must_be_known(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        ResultStore(tmp_path / "results.jsonl").append([replace(RESULT, **change)])
    assert not (tmp_path / "results.jsonl").exists()


def test_measured_gives_every_denominator_once() -> None:
    both = measured(RESULT, ["accuracy"], LINES, {"usable": 3, "all": 5})
    assert [(one.denominator, one.num_rows) for one in both] == [("usable", 3), ("all", 5)]
    assert [one.value for one in both] == pytest.approx([200 / 3, 40.0])
    assert [one.denominator for one in measured(RESULT, ["accuracy"], LINES, {"usable": 3, "all": 3})] == ["usable"]
    assert [one.num_rows for one in measured(RESULT, ["accuracy"], LINES)] == [3]


def test_mean_recall_is_the_mean_of_six(tmp_path: Path) -> None:
    lines = [{"id": f"{way}{n}", "direction": way, "rank": n * n} for way in ("t2i", "i2t") for n in range(4)]
    common = replace(RESULT, task="multi30k")
    *six, mean = measured(common, [*RECALLS, "mean_recall"], lines)
    assert [one.value for one in six] == [25.0, 75.0, 100.0] * 2
    assert mean.value == pytest.approx(sum(one.value for one in six) / 6)


@pytest.mark.parametrize("denominator", ["usable", "all"])
def test_a_number_is_derived_again_from_its_predictions(denominator: str, tmp_path: Path) -> None:
    digest = write_predictions(tmp_path / "predictions/ar.jsonl", LINES)
    common = replace(RESULT, predictions="predictions/ar.jsonl", predictions_sha256=digest)
    results = measured(common, ["accuracy"], LINES, {"usable": 3, "all": 5})
    store = ResultStore(tmp_path / "results.jsonl")
    store.append(results)
    (folder, stored) = next(one for one in results_in([tmp_path]) if one[1].denominator == denominator)
    assert derive(stored, folder) == stored.value


def test_other_predictions_are_refused(tmp_path: Path) -> None:
    digest = write_predictions(tmp_path / "p.jsonl", LINES)
    kept = replace(RESULT, predictions="p.jsonl", predictions_sha256=digest)
    write_predictions(tmp_path / "p.jsonl", LINES[:2])
    for result in (kept, RESULT, replace(RESULT, predictions="none.jsonl")):
        with pytest.raises(ConfigError):
            derive(result, tmp_path)
    (tmp_path / "p.jsonl").write_text("{")
    with pytest.raises(ConfigError):
        derive(replace(kept, predictions_sha256=""), tmp_path)


def test_stores_are_found_below_folders(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        ResultStore(tmp_path / name / "results.jsonl").append([replace(RESULT, model=name)])
    assert [(folder.name, one.model) for folder, one in results_in([tmp_path])] == [("a", "a"), ("b", "b")]
    assert len(results_in([tmp_path / "a" / "results.jsonl"])) == 1
    with pytest.raises(ConfigError):
        results_in([tmp_path / "a" / "none"])


def test_no_two_test_sets_share_a_file_of_predictions() -> None:
    names = ("en/testA", "en.testA", "en%2EtestA", "a/b/c", "a.b/c", "a/b.c")
    assert len({file_name_of(name) for name in names}) == len(names)
    assert (file_name_of("en/testA"), file_name_of("dev-1")) == ("en.testA", "dev-1"), "as before"
    assert not any("/" in file_name_of(name) for name in names)
