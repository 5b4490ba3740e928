"""A run that is stopped and started again equals one that nobody disturbed, bit by bit, in both schedules."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.engine.plain import PlainEngine
from cclm.engine.stored_weights import load_full_state
from cclm.run.causes import EXIT_CODES, Cause
from cclm.run.checkpoints import newest_complete, step_folder
from cclm.train.folder import KERNELS_FILE
from pretrain.__main__ import main
from tests.same_runs import values_of
from tests.tiny_run import recipe, with_regions, write_corpus, write_recipe

STEPS = 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


pytestmark = pytest.mark.usefixtures("one_thread")


def settings(corpus: Path, run: Path, schedule: str) -> list[str]:
    content = with_regions(recipe(corpus, run), corpus, schedule=schedule)
    content["model"]["text"]["dropout"] = 0.1  # must resume exactly, too
    content["optimizer"] = {"total_steps": STEPS, "learning_rate": 0.002, "warmup_steps": 2}
    content |= {
        "engine": "plain",
        "checkpoint": {"every_steps": 3, "keep": 3},
        "track": {"every_steps": 1, "tensorboard": False},
    }
    return ["--recipe", str(write_recipe(run.parent / f"{run.name}.yaml", content))]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["joint", "alternate"])
def test_stopped_and_resumed(corpus: Path, tmp_path: Path, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    assert main(settings(corpus, undisturbed, schedule)) == 0

    update, done = PlainEngine.update, []

    def update_until_killed(engine: PlainEngine, step: int, max_norm: float) -> Any:
        if step == 5 and not done:
            done.append(step)
            raise RuntimeError("killed")
        return update(engine, step, max_norm)

    monkeypatch.setattr(PlainEngine, "update", update_until_killed)
    assert main(settings(corpus, stopped, schedule)) == 1
    assert not (stopped / "done.json").exists()
    assert main(settings(corpus, stopped, schedule)) == 0

    assert values_of(stopped) == values_of(undisturbed)
    assert (stopped / "ledger.jsonl").read_bytes() == (undisturbed / "ledger.jsonl").read_bytes()
    first, second = (load_full_state(found) for run in (stopped, undisturbed) if (found := newest_complete(run)))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["joint", "alternate"])
def test_micro_batches_hold_the_same_samples(corpus: Path, tmp_path: Path, schedule: str) -> None:
    """Stopped after one checkpoint and gone on in other micro-batches: the ledger of a run in one piece."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*settings(corpus, whole, schedule), "--optimizer.total_steps", "4"]) == 0
    arguments = [*settings(corpus, parts, schedule), "--optimizer.total_steps", "4"]
    (parts / "stop").parent.mkdir(exist_ok=True)
    (parts / "stop").write_text("to change the micro-batches", encoding="utf-8")
    assert main([*arguments, "--data.micro_batches", "2"]) == 75
    assert main([*arguments, "--data.micro_batches", "1"]) == 0
    assert (parts / "ledger.jsonl").read_bytes() == (whole / "ledger.jsonl").read_bytes()
    first, second = values_of(whole)[-1], values_of(parts)[-1]
    assert {name: first[name] for name in first if name.startswith("seen/")} == {
        name: second[name] for name in second if name.startswith("seen/")
    }


@pytest.mark.slow
def test_an_alternating_log_holds_the_views_of_its_steps(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(settings(corpus, run, "alternate")) == 0
    ledger = [json.loads(line)["sums"] for line in (run / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    for line, sums in zip(values_of(run), ledger, strict=True):
        views = {name.partition("/")[0] for name in line if name.endswith("/mlm")}
        assert views == set(sums)
        assert len(views) == (3 if line["step"] == 0 else 2)
        parts = [
            v for k, v in line.items() if k.partition("/")[2] in {"itc", "itm", "ttc", "ttm", "mlm", "box", "giou"}
        ]
        assert line["loss"] == pytest.approx(sum(parts), rel=1e-5)


@pytest.mark.slow
def test_a_run_is_made_longer_from_the_stable_part_of_wsd(corpus: Path, tmp_path: Path) -> None:
    """The checkpoints of its decay go; it then equals one that was as long from the beginning."""
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    wsd = ["--optimizer.schedule", "wsd", "--optimizer.decay_steps", "3", "--optimizer.total_steps"]
    assert main([*settings(corpus, whole, "joint"), *wsd, "10"]) == 0
    assert main([*settings(corpus, longer, "joint"), *wsd, "7"]) == 0
    assert values_of(longer)[:4] == values_of(whole)[:4]
    assert values_of(longer)[5] != values_of(whole)[5], "it decays"
    for step in (6, 7):
        shutil.rmtree(step_folder(longer, step))
    assert main([*settings(corpus, longer, "joint"), *wsd, "10"]) == 0
    assert values_of(longer) == values_of(whole)
    ends = [load_full_state(step_folder(run, 10)) for run in (whole, longer)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.slow
def test_a_run_writes_down_its_kernels_and_goes_on_with_others(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, slow = tmp_path / "run", tmp_path / "slow"
    references = ["--kernels.attention", "math", "--kernels.contrastive", "blocks"]
    references += ["--kernels.cross_entropy", "reference"]
    assert main([*settings(corpus, run, "joint"), "--optimizer.total_steps", "4"]) == 0
    assert "kernels: attention recomputed, layer_norm torch, " in capsys.readouterr().err
    assert main([*settings(corpus, slow, "joint"), "--optimizer.total_steps", "4", *references]) == 0
    for fast, exact in zip(values_of(run), values_of(slow), strict=True):
        assert fast["loss"] == pytest.approx(exact["loss"], rel=1e-4)
    assert main([*settings(corpus, run, "joint"), "--optimizer.total_steps", "6", *references]) == 0
    known = json.loads((run / KERNELS_FILE).read_text())
    found = {one["op"]: (one["chosen"], one["why"]) for one in known["choices"]}
    assert found["attention"] == ("math", "asked for") and found["optimizer"][0] == "torch"
    assert known["versions"]["torch"] == torch.__version__ and known["devices"] == ["no GPU"]


@pytest.mark.slow
def test_a_kernel_that_is_not_there_is_a_users_error(corpus: Path, tmp_path: Path) -> None:
    for op in ("layer_norm", "optimizer"):
        arguments = [*settings(corpus, tmp_path / "run", "joint"), f"--kernels.{op}", "apex"]
        assert main(arguments) == EXIT_CODES[Cause.USER_ERROR]
