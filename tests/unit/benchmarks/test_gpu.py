"""The check of a GPU machine, on a CPU: every part runs, and what goes wrong in one is told and stops no other.

So that it works the first time where there is a GPU.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import corpus, kernels, parts, recipes
from benchmarks.gpu.parts import PARTS, Outcome, Part
from benchmarks.gpu.report import write_report
from benchmarks.gpu.session import Session
from cclm.costs.step import PEAKS
from cclm.recipe.read import RECIPES
from tests.stand_in_varlen import varlen_reference
from tests.tiny_training import dataset_of

SAME_CODE = {"cclm_3m": "cclm_4m", "cclm_x2vlm_large": "cclm_x2vlm_base", "template": "demo"}
"""Left out of the dry run, for what stands in for them."""


def session(folder: Path, name: str = "kernels") -> Session:
    (folder / "parts").mkdir(exist_ok=True)
    return Session(out=folder, name=name, device=torch.device("cpu"), is_dry=True, deadline=float("inf"))


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [part for part in PARTS if part.name not in SAME_CODE]
    only = [word for part in wanted for word in ("--only", part.name)]
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path), "--dry-run", "--minutes", "60", *only])
    assert command.main() == 0, capsys.readouterr().out
    document = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [part["status"] for part in document["parts"]] == ["passed"] * len(wanted)
    lines = [line for part in document["parts"] for line in part["lines"]]
    assert not [line for line in lines if line["kind"] == "note"], "something was tried and failed"
    tables = {line["table"] for line in lines if line["kind"] == "row"}
    assert tables == {"machine", "versions", "rates", "kernels", "recipes", "towers", "waits"}
    towers = [line["cells"] for line in lines if line["kind"] == "row" and line["table"] == "towers"]
    assert {cells["tower"] for cells in towers} == set(recipes.TOWERS) and all(cells["tflop"] > 0 for cells in towers)
    assert "dry run" in (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert not (tmp_path / "scratch").exists()


def test_every_shipped_recipe_has_a_part() -> None:
    needs_weights = {"demo_real"}  # of a folder that a bare machine has not: its network has the sizes of the source
    assert {path.stem for path in RECIPES.glob("*.yaml")} - needs_weights <= {part.name for part in PARTS}
    assert sum(part.seconds for part in PARTS) <= 8 * 60 - parts.RESERVE_S


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*SAME_CODE, *SAME_CODE.values()}))
def test_made_up_data_have_a_recipes_shape(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU is given, but for the vocabulary and the number of records."""
    monkeypatch.setattr(corpus, "VOCABULARIES", {"": 500})
    settings = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    groups = recipes.published_groups(settings, recipes.RANKS.get(name, 8))
    made = {**corpus.write_corpus(tmp_path, settings, 70), "run_folder": str(tmp_path / "run")}
    config = recipes.sized(made, groups, session(tmp_path))
    batch = dataset_of(config)[0]
    assert not batch.bad_samples
    for view_name, view in batch.views.items():
        assert view.matching_row_F.shape[0] == config.views[view_name].matching_rows
        assert config.views[view_name].num_groups == groups


def test_made_up_captions_are_as_long_as_real_ones() -> None:
    sentences = corpus.Sentences(500)
    lengths = [len(sentences.next().split()) for _ in range(2000)]
    assert 12.5 < sum(lengths) / len(lengths) < 14 and max(lengths) > 25


def test_a_batch_is_as_large_as_memory_leads_to_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 10e9

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    gpu = torch.device("cuda")
    assert recipes.next_groups({1: 2000.0}, 16, gpu) == 2
    assert recipes.next_groups({1: 2000.0, 2: 3000.0}, 16, gpu) == 8  # 1 + (9,200 - 2,000) / 1,000, rounded down
    assert recipes.next_groups({1: 2000.0, 2: 3000.0}, 4, gpu) == 4
    assert recipes.next_groups({1: 2000.0, 2: 8000.0}, 16, gpu) is None, "a third would not fit"
    assert recipes.next_groups({1: 1.0, 2: 2.0, 8: 9.0}, 16, gpu) is None


def test_a_missing_module_skips_what_needs_it(tmp_path: Path) -> None:
    part = Part(name="kernels", function="no:matter", needs=("no_such_module",), seconds=1)
    outcome = parts.run_part(part, tmp_path, 100.0, is_dry=True)
    assert (outcome.status, outcome.reason) == ("skipped", "not installed: no_such_module")


def test_a_part_that_takes_too_long_is_killed_and_counts_with_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, started = tmp_path / "parts/slow.jsonl", parts.subprocess.Popen
    found.parent.mkdir()
    line = json.dumps({"kind": "note", "text": "so far"})
    program = f"print({line!r}, file=open({str(found)!r}, 'a')); import time; time.sleep(60)"

    def start(command: object, **options: Any) -> Any:
        process = started([sys.executable, "-c", program], **options)
        while not found.exists() or not found.read_text().endswith("\n"):
            assert process.poll() is None
            time.sleep(0.01)
        return process

    monkeypatch.setattr(parts, "ENDING_S", 0.1)
    monkeypatch.setattr(parts.subprocess, "Popen", start)
    outcome = parts.run_part(Part(name="slow", function="", seconds=1), tmp_path, 0.2, is_dry=True)
    assert outcome.status == "out of time" and [one["text"] for one in outcome.lines] == ["so far"]


def test_what_a_part_says_last_is_the_reason_of_its_failure(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("Traceback\nRuntimeError: no kernel image\n", encoding="utf-8")
    assert parts.judge(1, [], log) == ("failed", "exit code 1: RuntimeError: no kernel image (parts/x.log)")
    wrong = {"kind": "check", "name": "sums", "holds": False}
    assert parts.judge(0, [wrong], log) == ("failed", "does not hold: sums")
    assert parts.judge(0, [{**wrong, "holds": True}], log) == ("passed", "")


def test_time_that_is_left_over_goes_to_later_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def run(part: Part, out: Path, seconds: float, *, is_dry: bool) -> Outcome:
        given.append(seconds)
        return Outcome(name=part.name, status="passed")

    monkeypatch.setattr(parts, "run_part", run)
    monkeypatch.setattr(parts, "time", SimpleNamespace(monotonic=lambda: 0.0))
    three = [Part(name=name, function="", seconds=10) for name in "abc"]
    list(parts.run_parts(three, tmp_path, 30 + parts.RESERVE_S, is_dry=True))
    assert given == pytest.approx([10, 20, 30])
    given.clear()
    list(parts.run_parts(three, tmp_path, 9 + parts.RESERVE_S, is_dry=True))
    assert given == pytest.approx([3, 4.5, 9]), "too little time is shared"


def test_checks_that_do_not_hold_and_nan_are_told(tmp_path: Path) -> None:
    one = session(tmp_path)
    assert one.check("fine", 1.0, 2.0)
    assert not one.check("too large", 3.0, 2.0)
    assert not one.check("no number", float("nan"), 2.0)
    with one.variant("library"):
        raise RuntimeError("does not fit\nmore")
    lines = parts.read_lines(tmp_path / "parts" / "kernels.jsonl")
    outcome = Outcome(name="kernels", status=parts.judge(0, lines, tmp_path)[0], lines=lines)
    assert outcome.status == "failed"
    write_report(tmp_path, [outcome], is_dry=True)
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "| too large | 3 | 2 |" in page and "| no number |  | 2 |" in page
    assert "library: RuntimeError: does not fit\n" in page
    json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_a_wrong_kernel_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    device, given = torch.device("cpu"), ((61, 131, 17, 5), torch.float32, 0.02)
    assert kernels.contrastive_error(*given, device) < kernels.CONTRASTIVE_TOLERANCE[0.02]
    right = kernels.contrastive_loss
    monkeypatch.setattr(
        kernels, "contrastive_loss", lambda *values: right(*(v.half().float() for v in values[:2]), *values[2:])
    )
    assert kernels.contrastive_error(*given, device) > kernels.CONTRASTIVE_TOLERANCE[0.02]


def test_the_names_of_the_data_sheet_are_found_in_order() -> None:
    """The first that fits counts, so a longer name stands before the shorter one that it holds."""
    names = list(PEAKS)
    assert [shorter for n, shorter in enumerate(names) for longer in names[n + 1 :] if shorter in longer] == []


def test_attention_of_sequences_is_compared_with_a_loop_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for what needs a GPU passes, and one that mixes two sequences does not."""
    shape, device = kernels.VARLEN_SHAPES[1], torch.device("cpu")
    monkeypatch.setattr(kernels, "varlen_attention", lambda: _attend)
    assert kernels.varlen_error(*shape, device) <= kernels.VARLEN_TOLERANCE
    monkeypatch.setattr(kernels, "varlen_attention", lambda: _attend_across)
    assert kernels.varlen_error(*shape, device) > 10 * kernels.VARLEN_TOLERANCE


def _attend(*given: Any) -> Tensor:
    return varlen_reference(*given, given[5])


def _attend_across(query: Tensor, key: Tensor, value: Tensor, of_query: Tensor, starts: Tensor, longest: int) -> Tensor:
    of_query, starts = (torch.cat([one[:2], one[3:]]) for one in (of_query, starts))
    return _attend(query, key, value, of_query, starts, 2 * longest)
