from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.demo_seeds import main, spread
from tests.tiny_config import run_values

REPOSITORY = Path(__file__).parents[3]
ONE = {"r1": 23.24, "r5": 49.6, "r10": 61.34}
TWO = {"r1": 25.0, "r5": 53.7, "r10": 65.4}


def results(recall: dict[str, float], random: float) -> dict[str, Any]:
    kinds = {kind: {"accuracy": value, "loss": 0.5} for kind, value in (("random", random), ("hard", 63.2))}
    return {
        "groups": {name: {"t2i": recall, "i2t": recall} for name in ("english", "control")},
        "matching": {"prior": {"accuracy": 66.67, "loss": 0.637}, "languages": {"en": kinds}},
    }


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A run folder, and a results file that lies alone."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.yaml").write_text(yaml.safe_dump(run_values()))
    (tmp_path / "demo" / "results.json").write_text(json.dumps(results(ONE, 86.1)))
    (tmp_path / "other.json").write_text(json.dumps(results(TWO, 86.3)))
    return [tmp_path / "demo", tmp_path / "other.json"]


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_row_for_each_group_and_direction(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, *runs)
    assert lines[0] == ("| group | direction | seed 42 R@1/5/10 | other R@1/5/10 | mean R@10 | standard deviation |")
    assert lines[2] == "| english | text → image | 23.2 / 49.6 / 61.3 | 25.0 / 53.7 / 65.4 | 63.4 | 2.9 |"
    assert [line.split(" | ")[:2] for line in lines[2:6]] == [
        [f"| {group}", way] for group in ("english", "control") for way in ("text → image", "image → text")
    ]
    assert lines[6:] == [
        "",
        "Matching head on held-out English pairs, accuracy (prior 66.7): "
        "random wrong pairs 86.1, 86.3; hard wrong pairs 63.2, 63.2.",
    ]


def test_rules_of_reranking_stand_side_by_side(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    def order(weight: float, r1: float) -> dict[str, Any]:
        groups = {"english": {"t2i": {"r1": r1}}}
        return {"top_k": 8, "rule": {"match_weight": weight, "similarity_weight": 1.0}, "groups": groups}

    one = results(ONE, 86.1) | {"reranked": order(0.0, 23.24)}
    one["reranked_not_chosen"] = {"match_plus_similarity": order(1.0, 20.0), "match_alone": order(1.0, 18.0)}
    two = results(TWO, 86.3) | {"reranked": order(1.0, 26.0)}
    two["reranked_not_chosen"] = {"match_alone": order(1.0, 19.0)}
    for path, content in zip((runs[0] / "results.json", runs[1]), (one, two), strict=True):
        path.write_text(json.dumps(content))
    assert printed(capsys, *runs)[9:] == [
        "Text → image R@1 when the 8 best candidates are ordered anew:",
        "",
        "| group | dual encoder | chosen on the dev set (weight 0, 1) | not chosen: match + similarity "
        "| not chosen: match alone, as published |",
        "|---|---|---|---|---|",
        "| english | 23.2, 25.0 | 23.2, 26.0 | 20.0, 26.0 | 18.0, 19.0 |",
    ]


def test_a_results_file_inside_a_run_folder_is_the_run(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, runs[0]) == printed(capsys, runs[0] / "results.json")


def test_one_seed_has_no_spread(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, runs[0])[2].endswith("| 61.3 | – |")


def test_what_was_not_measured_by_all_is_left_out(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    less = results(TWO, 1.0)
    del less["groups"]["english"], less["matching"]
    runs[1].write_text(json.dumps(less))
    lines = printed(capsys, *runs)
    assert len(lines) == 4 and lines[2].startswith("| control")


@pytest.mark.parametrize(("content", "words"), [(None, "got no such file"), ("{}", "got no groups in it")])
def test_what_is_no_result_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    assert main([str(tmp_path)]) == 2
    assert words in (told := capsys.readouterr().err) and "python -m pretrain.demo" in told


def test_the_documents_table_is_what_is_printed(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cells, read back into results, print its rows again: only the last two may differ, by rounding."""
    text = (REPOSITORY / "docs" / "demo.md").read_text(encoding="utf-8")
    heading = next(line for line in text.splitlines() if line.startswith("| group | direction"))
    names = re.findall(r"\| seed (\d+) R@1/5/10 ", heading)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split(heading)[1].splitlines()[2:10]]
    files = []
    for column, name in enumerate(names):
        folder = tmp_path / name
        folder.mkdir()
        groups: dict[str, Any] = {}
        for row in rows:
            recall = dict(zip(("r1", "r5", "r10"), map(float, row[2 + column].split("/")), strict=True))
            groups.setdefault(row[0], {})[{"text → image": "t2i", "image → text": "i2t"}[row[1]]] = recall
        (folder / "results.json").write_text(json.dumps({"groups": groups}))
        (folder / "config.yaml").write_text(yaml.safe_dump(run_values(seed=int(name))))
        files.append(folder)
    lines = printed(capsys, *files)
    assert lines[0] == heading
    for line, row in zip(lines[2:], rows, strict=True):
        again = [cell.strip() for cell in line.split("|")[1:-1]]
        assert again[:-2] == row[:-2]
        assert [float(cell) for cell in again[-2:]] == pytest.approx([float(cell) for cell in row[-2:]], abs=0.11)


def test_figures_for_programs(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, *runs, "--json", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["seeds"] == ["seed 42", "other"]
    english = figures["groups"]["english"]["t2i"]
    assert english["recall"] == [ONE, TWO]
    assert english["r10_mean"] == pytest.approx((61.34 + 65.4) / 2)
    assert english["r10_standard_deviation"] == pytest.approx((65.4 - 61.34) / 2**0.5)


def test_spread_over_seeds() -> None:
    found = spread([44.0, 46.0, 48.0])
    assert (found.mean, found.standard_deviation, found.lowest, found.highest, found.num_seeds) == (46, 2, 44, 48, 3)
    assert str(found) == "46.0 ± 2.0 (3 seeds)"
    assert spread([5.0]).standard_deviation == 0.0


def test_a_run_is_held_against_a_documented_spread(runs: list[Path], tmp_path: Path) -> None:
    documented = tmp_path / "spread.json"
    assert main([*map(str, runs), "--json", str(documented)]) == 0
    held = ["--within", str(documented)]
    assert main([*map(str, runs), *held]) == 0
    lower = {**ONE, "r10": 63.4 - 3 * 2.9 - 0.3}
    (runs[0] / "results.json").write_text(json.dumps(results(lower, 86.1)))
    assert main([str(runs[0]), *held]) == 1
    empty = tmp_path / "empty.json"
    empty.write_text("{}")
    assert main([str(runs[1]), "--within", str(empty)]) == 2
