"""Each task on its stand-in data, from a pre-trained run, under ZeRO-3 on two ranks: it learns, is killed, goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.engine.stored_weights import load_full_state
from cclm.evaluate.results import ResultStore, derive
from cclm.run.checkpoints import complete_checkpoints, newest_complete, pinned
from tests.left_to_long import left_to_long
from tests.same_runs import values_of
from tests.tiny_finetune import (
    ENVIRONMENT,
    ROOT,
    SEEDS,
    command,
    pretrained_run,
    run,
    run_here,
    stand_in,
    under_launcher,
)

pytestmark = pytest.mark.slow
TINY = {"batch_size": 9, "max_tokens": 8, "transform.method": "none"}
TESTS = {
    "xvnli": ("classify", "annotations/{}/test.jsonl", TINY),
    "marvl": ("classify", "marvl/zero_shot/annotations/marvl-{}.jsonl", TINY),
    "xgqa": ("answer", "xGQA/annotations/few_shot/{}/test.json", {**TINY, "batch_size": 6, "max_answer_tokens": 4}),
}
"""Task → its view, where its test files are, and small settings of the view."""
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "xvnli": ("xvnli", {}),
    "marvl": ("marvl", {}),
    "xgqa": ("xgqa", {}),
    "xgqa with classes": ("xgqa", {"views.answer.head": "classes", "model.num_classes": 5}),
    "xflickrco": (
        "xflickrco",
        {"finetune.epochs": 50, "finetune.first_evaluation": 25, "finetune.evaluate_every": 25},  # it is soon learned
    ),
}
PAIRS = {
    f"views.retrieve.{key}": value
    for key, value in {**TINY, "batch_size": 6, "negative_group": 6, "matching_rows": 6}.items()
}
EVERY = 25


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained_run(tmp_path_factory.mktemp("pretrained"))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(task: str, pretrained: Path, data: Path, folder: Path, **changes: Any) -> list[str]:
    task, own = SETTINGS[task]
    settings: dict[str, Any] = {
        **(PAIRS if task == "xflickrco" else rows(task)),
        "finetune.epochs": 100,
        "finetune.first_evaluation": 30,
        "finetune.evaluate_every": 30,
        "optimizer.learning_rate": 0.002,
        "optimizer.max_grad_norm": 1,
        "checkpoint.every_steps": EVERY,
        "checkpoint.keep": 1,
        **own,
        **changes,
    }
    return command(task, pretrained, data, folder, settings)


def rows(task: str) -> dict[str, Any]:
    view, tests, sizes = TESTS[task]
    settings = {f"views.{view}.{key}": value for key, value in sizes.items()}
    return {**settings, f"views.{view}.test": {language: tests.format(language) for language in ("en", "de")}}


def learned(task: str, pretrained: Path, data: Path, folder: Path) -> tuple[Path, int]:
    """Fine-tune, and look at what was measured and kept; the run, and its seed."""
    for seed in SEEDS:
        whole = folder / f"whole-{seed}"
        run_here(words(task, pretrained, data, whole, seed=seed), ranks=2)
        results = {result.language: result for result in ResultStore(whole / "results.jsonl").read()[::-1]}
        if results["en"].value >= 95:
            break
    assert results["en"].value >= 95
    assert {"en", "de"} <= set(results)
    for result in results.values():
        assert (result.task, result.model) == (SETTINGS[task][0], "run")
        assert (result.protocol, result.selected_on) == ("zero-shot", "dev")
        assert 0 < result.num_rows <= len(lines_of(whole / result.predictions))
        assert derive(result, whole) == result.value
    best = pinned(whole)
    kept = set(complete_checkpoints(whole))  # one more: the best before, until good steps stand behind this one
    assert best is not None and {best, newest_complete(whole)} <= kept and len(kept) <= 3
    assert results["en"].checkpoint == str(best)
    return whole, seed


@pytest.mark.parametrize("task", left_to_long(["xgqa", "xflickrco", "xgqa with classes"], "xgqa with classes"))
def test_it_learns(pretrained: Path, tmp_path: Path, task: str) -> None:
    learned(task, pretrained, stand_in(SETTINGS[task][0], tmp_path / "data"), tmp_path)


@pytest.mark.parametrize("task", left_to_long(["xvnli", "marvl", "xgqa", "xflickrco"], "marvl", "xgqa", "xflickrco"))
def test_it_learns_and_resumes(pretrained: Path, tmp_path: Path, task: str) -> None:
    """The others' views are interrupted on ranks in tests/ranks/test_resumed_tasks.py."""
    data, killed = stand_in(SETTINGS[task][0], tmp_path / "data"), tmp_path / "killed"
    whole, seed = learned(task, pretrained, data, tmp_path)
    kill_after(words(task, pretrained, data, killed, seed=seed), killed)
    run(under_launcher(words(task, pretrained, data, killed, seed=seed), 2)[1:])
    assert values_of(killed) == values_of(whole)
    predictions = {result.predictions for result in ResultStore(whole / "results.jsonl").read()}
    for name in ("ledger.jsonl", "evaluations.jsonl", *predictions):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    first, second = (load_full_state(checkpoint) for checkpoint in map(newest_complete, (killed, whole)) if checkpoint)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_the_pages_first_commands(pretrained: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8").split("To see it work")[1].split("```")[1]
    places = {"runs/demo": pretrained} | {
        name: tmp_path / Path(name).name for name in ("data/stand-in", "runs/stand-in", "stand-in-model")
    }
    places["data/stand-in"] = tmp_path / "data"
    smaller = {"32": "16", "20": "2", **{name: str(path) for name, path in places.items()}}
    lines = [shlex.split(line) for line in page.replace("\\\n", " ").strip().splitlines()]
    assert [line[0] for line in lines] == ["python", "python", "python", "cclm"]
    for first, *words in lines:
        program = ["-m", "cclm.cli", *words] if first == "cclm" else words
        run([smaller.get(word, word) for word in program])
    results = ResultStore(places["runs/stand-in"] / "results.jsonl").read()
    assert {result.language for result in results} == {"en", "ar", "es", "fr", "ru"}
    assert (places["stand-in-model"] / "config.json").is_file()


def kill_after(command_words: list[str], folder: Path) -> None:
    """Start, and kill a rank with kill -9 when there is a checkpoint."""
    process = subprocess.Popen(
        under_launcher(command_words, 2), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 600
    while newest_complete(folder) is None:
        assert time.monotonic() < deadline and process.poll() is None, "no checkpoint came"
        time.sleep(0.02)
    status = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "status").glob("rank_1.json")]
    os.kill(status[0]["pid"], signal.SIGKILL)
    assert process.wait(timeout=600) != 0
    assert not (folder / "done.json").exists()
